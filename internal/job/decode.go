package job

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of an entry (DESIGN.md section 2.1). Lengths are in bytes.
const (
	MaxJobID     = 256     // jobId
	MaxID        = 512     // every other identifier, nodeLevel and model
	MaxFields    = 64      // fields of an entry, and members of a job given as JSON
	MaxFieldName = 128     // the name of a field, known or not
	MaxJSONDepth = 64      // nesting of a job given as JSON, payload included
	MaxEncoded   = 1 << 20 // EncodedSize of the whole job
)

// maxJSONText bounds a job given as JSON before it is parsed. No job that fits
// MaxEncoded needs more: an escape makes six bytes of one at most.
const maxJSONText = 6 * MaxEncoded

// Decoded is an accepted entry.
type Decoded struct {
	Job Job
	// Notes says what was normalised or ignored, each code of Notes at most once,
	// in the order found.
	Notes []string
}

// Decode turns a raw entry into a job, by the catalogue of bad input and DESIGN.md
// section 2.1. It is pure and never panics. The error is always a *Rejection.
//
// Fields. The role comes from the stream; a role field is only compared with it.
// Names match in any case. Fields that mean nothing here are ignored and noted,
// their values never looked at. The same name twice is noted when the values are
// equal and rejected when they differ: no choice between them would be safe. An
// empty value is an absent one.
//
// One JSON field. Where data, job or (other roles than chat) message is the only
// field with a meaning, it must hold the whole job as a JSON object, whose
// members then follow the same rules as fields; null is absent. Beside any
// job field it is an unknown field like others.
//
// On the chat stream message is the text itself. A user may type JSON, so it is
// taken for the whole job only where nothing else could be meant: no other job
// field stands beside it (a real chat entry has at least a userId or
// connectionId), and it is a JSON object with a message of its own. Everything
// else, JSON or not, is the text.
//
// Sizes. The limit is on the job as Temporal stores it (EncodedSize), all fields
// together. A payload of plain text may therefore be 1 MiB less the other fields
// and some 20 bytes for each name.
func Decode(role Role, e Entry) (Decoded, error) {
	d := draft{role: role, values: make(map[string]string, len(e.Fields))}
	d.readEntry(e.Fields)
	if f, ok := d.wholeJob(); ok {
		d.readJSON(f.Name, f.Value)
	}
	j := d.job(e.ID)
	if d.rejection != nil {
		d.rejection.Job = j.Identifiers()
		return Decoded{}, d.rejection
	}
	return Decoded{Job: j, Notes: d.notes}, nil
}

// draft is an entry on its way to a job. It goes on after the first fault, so
// that a rejection carries every usable identifier.
type draft struct {
	role      Role
	source    string
	values    map[string]string // job fields by canonical name
	unusable  []string          // canonical names of job fields whose value is faulty
	whole     []Field           // fields that may hold the whole job
	notes     []string
	rejection *Rejection // the first fault
}

func (d *draft) note(code string) { d.notes = addNote(d.notes, code) }

func (d *draft) reject(reason, field string) {
	if d.rejection == nil {
		d.rejection = &Rejection{Reason: reason, Field: field}
	}
}

// rejectValue is reject for a job field whose value must not be used either.
func (d *draft) rejectValue(reason, field string) {
	d.reject(reason, field)
	d.unusable = append(d.unusable, field)
	delete(d.values, field)
}

func (d *draft) readEntry(fields []Field) {
	if len(fields) > MaxFields {
		d.reject(ReasonTooManyFields, "")
	}
	var readded, truncated bool
	for _, f := range fields {
		name, use := d.lookUp(f.Name)
		switch use {
		case useJob:
			d.set(name, f.Value)
		case useWhole:
			d.whole = append(d.whole, Field{name, f.Value})
		case useRole:
			d.compareRole(f.Value)
		case useSource:
			d.setSource(f.Value)
		case useDeadLetter:
			d.note(NoteDeadLetterField)
			readded = readded || name == fieldOriginalID
			truncated = truncated || name == fieldTruncated && f.Value != ""
		case useConfig:
			d.note(NoteIgnoredField)
		case useNone:
			d.note(NoteUnknownField)
		}
	}
	if readded && truncated {
		// Half a prompt would be run and paid for.
		d.reject(ReasonDeadLetterTruncated, "")
	}
}

// wholeJob returns the field that holds the whole job as JSON, if there is one.
func (d *draft) wholeJob() (Field, bool) {
	if d.hasJobFields() {
		if len(d.whole) > 0 {
			d.note(NoteUnknownField)
			return Field{}, false
		}
		return d.wholeMessage()
	}
	var found Field
	for _, f := range d.whole {
		switch {
		case f.Value == "":
		case found.Value == "":
			found = f
		case f == found:
			d.note(NoteFieldRepeated)
		default:
			d.reject(ReasonAmbiguousField, f.Name)
			return Field{}, false
		}
	}
	return found, found.Value != ""
}

// wholeMessage is wholeJob for a chat entry that has only a message.
func (d *draft) wholeMessage() (Field, bool) {
	text := d.values[fieldMessage]
	if d.role != Chat || text == "" || len(text) > maxJSONText || !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return Field{}, false
	}
	for name, value := range d.values {
		if name != fieldMessage && value != "" {
			return Field{}, false
		}
	}
	if len(d.unusable) > 0 {
		return Field{}, false
	}
	members, _ := parseObject(text)
	for _, m := range members {
		if sameName(fieldMessage, m.name) && m.isString() {
			delete(d.values, fieldMessage)
			return Field{fieldMessage, text}, true
		}
	}
	return Field{}, false
}

func (d *draft) hasJobFields() bool {
	for _, value := range d.values {
		if value != "" {
			return true
		}
	}
	return len(d.unusable) > 0
}

// readJSON reads the job from the value of the named field.
func (d *draft) readJSON(field, text string) {
	if len(text) > maxJSONText {
		d.reject(ReasonTooLarge, field)
		return
	}
	members, reason := parseObject(text)
	if reason != "" {
		d.reject(reason, field)
		return
	}
	d.note(NoteJSONField)
	if len(members) > MaxFields {
		d.reject(ReasonTooManyFields, field)
	}
	for _, m := range members {
		name, use := d.lookUp(m.name)
		switch use {
		case useJob:
			d.setMember(name, m)
		case useRole:
			if role, reason := m.text(true); reason == "" && !m.isNull() {
				d.compareRole(role)
			}
		case useConfig:
			d.note(NoteIgnoredField)
		case useNone, useWhole, useSource, useDeadLetter:
			// The last three mean something only around the object: what came
			// through the list, for one, is said by whoever moved it.
			d.note(NoteUnknownField)
		}
	}
}

func (d *draft) setMember(name string, m member) {
	if m.isNull() {
		return
	}
	// A wrong priority is ignored later, whatever its type.
	value, reason := m.text(name == fieldPayload || name == fieldPriority)
	if reason != "" {
		d.rejectValue(reason, name)
		return
	}
	d.set(name, value)
}

func (d *draft) set(name, value string) {
	if slices.Contains(d.unusable, name) {
		return
	}
	switch old, repeated := d.values[name]; {
	case !repeated:
		d.values[name] = value
	case old == value:
		d.note(NoteFieldRepeated)
	default:
		d.rejectValue(ReasonAmbiguousField, name)
	}
}

func (d *draft) setSource(value string) {
	if value != SourceList {
		d.note(NoteUnknownField)
		return
	}
	d.source = SourceList
}

func (d *draft) compareRole(value string) {
	if value != "" && !sameName(string(d.role), value) {
		d.note(NoteRoleMismatch)
	}
}

// use is what a field is for.
type use int

const (
	useNone       use = iota // nothing
	useJob                   // a field of the job
	useWhole                 // may hold the whole job
	useRole                  // repeats the role
	useSource                // says who moved the entry here
	useDeadLetter            // a dead letter added again has it
	useConfig                // only the configuration decides this (cost, forged requests)
)

// lookUp returns the documented spelling of a name and what it is for.
func (d *draft) lookUp(given string) (name string, u use) {
	if len(given) > MaxFieldName {
		d.reject(ReasonFieldNameTooLong, "")
		return "", useNone
	}
	name, u = classify(d.role, given)
	if u != useNone && u != useConfig && name != given {
		d.note(NoteFieldCase)
	}
	return name, u
}

func classify(role Role, given string) (name string, u use) {
	for _, f := range [...]struct {
		name        string
		other, chat use // for the three roles with a task, and for chat
	}{
		{fieldJobID, useJob, useJob},
		{fieldWorkflowID, useJob, useJob},
		{fieldUserID, useJob, useJob},
		{fieldProjectID, useJob, useJob},
		{fieldNodeID, useJob, useJob},
		{fieldConnectionID, useJob, useJob},
		{fieldPriority, useJob, useJob},
		{fieldTask, useJob, useNone},
		{fieldPayload, useJob, useNone},
		{fieldMessage, useWhole, useJob},
		{fieldChatID, useNone, useJob},
		{fieldNodeLevel, useNone, useJob},
		{fieldModel, useConfig, useJob},
		{fieldSource, useNone, useSource},
		{fieldRole, useRole, useRole},
		{fieldData, useWhole, useWhole},
		{fieldJob, useWhole, useWhole},
		{"endpoint", useConfig, useConfig},
		{"url", useConfig, useConfig},
		{"apiKey", useConfig, useConfig},
		{"max_tokens", useConfig, useConfig},
		{"maxTokens", useConfig, useConfig},
		{fieldOriginalID, useDeadLetter, useDeadLetter},
		{fieldFailedAt, useDeadLetter, useDeadLetter},
		{fieldReason, useDeadLetter, useDeadLetter},
		{fieldError, useDeadLetter, useDeadLetter},
		{fieldTruncated, useDeadLetter, useDeadLetter},
	} {
		if sameName(f.name, given) {
			if role == Chat {
				return f.name, f.chat
			}
			return f.name, f.other
		}
	}
	return "", useNone
}

// sameName compares a name of ours with a given one, without regard to the case
// of ASCII letters. Unicode's rules would let a name with the Kelvin sign pass
// for one with a k.
func sameName(ours, given string) bool {
	return len(ours) == len(given) && strings.EqualFold(ours, given)
}

// job validates the collected values. A faulty one is left empty.
func (d *draft) job(entryID string) Job {
	j := Job{
		Role:         d.role,
		ID:           d.jobID(entryID),
		WorkflowID:   d.id(fieldWorkflowID),
		UserID:       d.id(fieldUserID),
		ProjectID:    d.id(fieldProjectID),
		NodeID:       d.id(fieldNodeID),
		ConnectionID: d.id(fieldConnectionID),
		Priority:     d.priority(),
		Source:       d.source,
	}
	if d.role == Chat {
		j.Task = d.text(fieldMessage)
		j.ChatID = d.id(fieldChatID)
		j.NodeLevel = d.nodeLevel()
		j.Model = d.id(fieldModel)
	} else {
		j.Task = d.text(fieldTask)
		j.Payload = d.payload()
	}
	switch {
	case !isBlank(j.Task), d.role == Inspector && !isBlank(j.Payload):
	case d.role == Chat:
		d.reject(ReasonChatMessageMissing, fieldMessage)
	default:
		d.reject(ReasonTaskMissing, fieldTask)
	}
	if d.rejection == nil && !j.fits() {
		d.reject(ReasonTooLarge, "")
	}
	return j
}

// Identifiers is the part of the job that may be shown and logged. It lists what
// to keep, so that a field added to Job stays out until someone decides.
func (j Job) Identifiers() Job {
	return Job{
		Role:         j.Role,
		ID:           j.ID,
		WorkflowID:   j.WorkflowID,
		UserID:       j.UserID,
		ProjectID:    j.ProjectID,
		NodeID:       j.NodeID,
		ConnectionID: j.ConnectionID,
		ChatID:       j.ChatID,
		Source:       j.Source,
	}
}

// jobID returns the jobId or, where there is none, the entry id.
func (d *draft) jobID(entryID string) string {
	if slices.Contains(d.unusable, fieldJobID) {
		return ""
	}
	id := d.values[fieldJobID]
	if isBlank(id) {
		if isBlank(entryID) || jobIDFault(entryID) != "" {
			d.reject(ReasonJobIDMissing, fieldJobID)
			return ""
		}
		d.note(NoteJobIDFromEntry)
		return entryID
	}
	if fault := jobIDFault(id); fault != "" {
		d.rejectValue(fault, fieldJobID)
		return ""
	}
	return id
}

// jobIDFault returns why the text cannot be a jobId, or nothing. Two ids are the
// same only if their bytes are: no case folding, no Unicode normalisation.
func jobIDFault(id string) string {
	if fault := idFault(id, MaxJobID, ReasonJobIDTooLong); fault != "" {
		return fault
	}
	switch {
	case strings.TrimSpace(id) != id:
		return ReasonJobIDSpaces
	case strings.HasPrefix(id, rejectedPrefix):
		return ReasonJobIDReserved
	default:
		return ""
	}
}

// id returns the value of an identifier other than the jobId.
func (d *draft) id(name string) string {
	value := d.values[name]
	if isBlank(value) {
		if value != "" {
			d.note(NoteBlankField)
		}
		return ""
	}
	if fault := idFault(value, MaxID, ReasonIDTooLong); fault != "" {
		d.rejectValue(fault, name)
		return ""
	}
	return value
}

// idFault returns why the text cannot be an identifier, or nothing. Identifiers
// are shown in logs, tables and links, so nothing that breaks a line, hides or
// turns text around may be in them.
func idFault(id string, limit int, tooLong string) string {
	switch {
	case len(id) > limit:
		return tooLong
	case !utf8.ValidString(id):
		return ReasonNotUTF8
	}
	for _, r := range id {
		switch {
		case unicode.IsControl(r), unicode.In(r, unicode.Zl, unicode.Zp):
			return ReasonControlChars
		case unicode.Is(unicode.Cf, r):
			return ReasonFormatChars
		}
	}
	return ""
}

// text returns a value that is passed on byte for byte.
func (d *draft) text(name string) string {
	value := d.values[name]
	if !utf8.ValidString(value) {
		d.rejectValue(ReasonNotUTF8, name)
		return ""
	}
	return value
}

// payload returns the payload, which is opaque: whether it is JSON is looked at
// for the metric only, and not even that where it nests deeply or is too large.
func (d *draft) payload() string {
	payload := d.text(fieldPayload)
	if payload != "" && len(payload) <= MaxEncoded && nesting(payload) <= MaxJSONDepth && !json.Valid([]byte(payload)) {
		d.note(NotePayloadNotJSON)
	}
	return payload
}

// nodeLevel returns the level of a chat's node; a role's name in lower case,
// anything else as it is.
func (d *draft) nodeLevel() string {
	level := d.id(fieldNodeLevel)
	for _, role := range Roles() {
		if sameName(string(role), level) && string(role) != level {
			d.note(NoteNodeLevelCase)
			return string(role)
		}
	}
	return level
}

// priority returns 1 to 5, or 0 for none. A wrong one is no reason to refuse a
// job that can run without it.
func (d *draft) priority() int {
	switch value := strings.TrimSpace(d.values[fieldPriority]); value {
	case "":
		return 0
	case "1", "2", "3", "4", "5":
		return int(value[0] - '0')
	default:
		d.note(NotePriorityInvalid)
		return 0
	}
}

func isBlank(s string) bool { return strings.TrimSpace(s) == "" }
