package job

import "slices"

// Reasons why an entry is rejected. They are stable: they stand in metrics, in
// dead letters, in rows (error_code) and in error updates.
const (
	ReasonAmbiguousField      = "ambiguous_field"       // a field given twice with different values, or two JSON fields
	ReasonChatMessageMissing  = "chat_message_missing"  // a chat entry without text, for example one with only a chatId
	ReasonControlChars        = "control_chars"         // an identifier with a control character or a line separator
	ReasonDeadLetterTruncated = "dead_letter_truncated" // a dead letter added again whose values had been cut
	ReasonFieldNameTooLong    = "field_name_too_long"   // a field name longer than MaxFieldName
	ReasonFormatChars         = "format_chars"          // an identifier with an invisible or bidirectional control
	ReasonIDTooLong           = "id_too_long"           // an identifier other than jobId longer than MaxID
	ReasonJobIDMissing        = "job_id_missing"        // neither a jobId nor an entry id that could stand in
	ReasonJobIDReserved       = "job_id_reserved"       // a jobId that begins with "entry:"
	ReasonJobIDSpaces         = "job_id_spaces"         // a jobId that begins or ends with white space
	ReasonJobIDTooLong        = "job_id_too_long"       // a jobId longer than MaxJobID
	ReasonJSONInvalid         = "json_invalid"          // the one field that should hold the job is not a JSON object
	ReasonJSONTooDeep         = "json_too_deep"         // that field nests deeper than MaxJSONDepth
	ReasonNotUTF8             = "not_utf8"              // a value that is not text
	ReasonStartRefused        = "start_refused"         // Temporal refused the job for good; given by the bridge
	ReasonTaskMissing         = "task_missing"          // no task (inspector: neither task nor payload)
	ReasonTooLarge            = "too_large"             // more than MaxEncoded bytes when encoded
	ReasonTooManyFields       = "too_many_fields"       // more than MaxFields fields
	ReasonWrongType           = "wrong_type"            // a JSON value of a kind the field cannot have
)

// Reasons returns every reason a Rejection can carry, in alphabetical order.
func Reasons() []string {
	return []string{
		ReasonAmbiguousField, ReasonChatMessageMissing, ReasonControlChars,
		ReasonDeadLetterTruncated, ReasonFieldNameTooLong, ReasonFormatChars,
		ReasonIDTooLong, ReasonJobIDMissing, ReasonJobIDReserved, ReasonJobIDSpaces,
		ReasonJobIDTooLong, ReasonJSONInvalid, ReasonJSONTooDeep, ReasonNotUTF8,
		ReasonStartRefused, ReasonTaskMissing, ReasonTooLarge, ReasonTooManyFields,
		ReasonWrongType,
	}
}

// Rejection says why an entry cannot become a job. It holds nothing of the
// entry's content, so that it may be logged and shown to a user.
type Rejection struct {
	// Reason is one of Reasons.
	Reason string
	// Field is the field at fault in its documented spelling; empty where the
	// entry as a whole is at fault or the name is not one of ours.
	Field string
	// Job holds what is needed to tell the user: the role, the identifiers that
	// are valid by themselves, and the source. ID is the entry id where the entry
	// had no jobId, and empty where it had an invalid one. Task, payload, model
	// and priority are always empty.
	Job Job
}

// Error returns the reason and the field, never a value.
func (r *Rejection) Error() string {
	if r.Field == "" {
		return "entry rejected: " + r.Reason
	}
	return "entry rejected: " + r.Reason + " (field " + r.Field + ")"
}

// Message returns a fixed sentence for the user who sent the job.
func (r *Rejection) Message() string {
	switch r.Reason {
	case ReasonAmbiguousField:
		return "The job was not run: it gives the same field more than once with different values."
	case ReasonChatMessageMissing:
		return "The message was not answered: the entry does not contain its text."
	case ReasonControlChars:
		return "The job was not run: one of its identifiers contains control characters."
	case ReasonDeadLetterTruncated:
		return "The job was not run: it was added again from a shortened copy. Send the original job."
	case ReasonFieldNameTooLong:
		return "The job was not run: it has a field whose name is too long."
	case ReasonFormatChars:
		return "The job was not run: one of its identifiers contains invisible characters."
	case ReasonIDTooLong:
		return "The job was not run: one of its identifiers is longer than 512 bytes."
	case ReasonJobIDMissing:
		return "The job was not run: it has no identifier."
	case ReasonJobIDReserved:
		return "The job was not run: identifiers of jobs must not begin with \"entry:\"."
	case ReasonJobIDSpaces:
		return "The job was not run: its identifier begins or ends with a space."
	case ReasonJobIDTooLong:
		return "The job was not run: its identifier is longer than 256 bytes."
	case ReasonJSONInvalid:
		return "The job was not run: it should be a JSON object, but is not."
	case ReasonJSONTooDeep:
		return "The job was not run: its JSON is nested too deeply."
	case ReasonNotUTF8:
		return "The job was not run: it contains bytes that are not text (UTF-8)."
	case ReasonTaskMissing:
		return "The job was not run: it does not say what to do."
	case ReasonTooLarge:
		return "The job was not run: it is larger than 1 MiB."
	case ReasonTooManyFields:
		return "The job was not run: it has more than 64 fields."
	case ReasonWrongType:
		return "The job was not run: one of its fields holds the wrong kind of value."
	default: // ReasonStartRefused
		return "The job was not run: the system did not accept it."
	}
}

// Normalisations that Decode reports. They are stable: they stand in a metric.
const (
	NoteBlankField      = "blank_field"       // an identifier of only white space, taken as absent
	NoteDeadLetterField = "dead_letter_field" // a dead letter added again; its extra fields are ignored
	NoteFieldCase       = "field_case"        // a field name in other than the documented spelling
	NoteFieldRepeated   = "field_repeated"    // a field given twice with the same value
	NoteIgnoredField    = "ignored_field"     // a field that only the configuration may set, such as endpoint
	NoteJobIDFromEntry  = "job_id_from_entry" // no jobId: the entry id is the jobId
	NoteJSONField       = "json_field"        // the whole job came as one JSON object
	NoteNodeLevelCase   = "node_level_case"   // a nodeLevel such as "Manager", taken as "manager"
	NotePayloadNotJSON  = "payload_not_json"  // the payload is passed on as plain text
	NotePriorityInvalid = "priority_invalid"  // a priority other than 1 to 5, ignored
	NoteRoleMismatch    = "role_mismatch"     // a role field that contradicts the stream, ignored
	NoteUnknownField    = "unknown_field"     // a field that means nothing here, ignored
)

// Notes returns every code that Decoded.Notes can hold, in alphabetical order.
func Notes() []string {
	return []string{
		NoteBlankField, NoteDeadLetterField, NoteFieldCase, NoteFieldRepeated,
		NoteIgnoredField, NoteJobIDFromEntry, NoteJSONField, NoteNodeLevelCase,
		NotePayloadNotJSON, NotePriorityInvalid, NoteRoleMismatch, NoteUnknownField,
	}
}

// addNote keeps each code once: the metric counts entries, not fields.
func addNote(notes []string, code string) []string {
	if slices.Contains(notes, code) {
		return notes
	}
	return append(notes, code)
}
