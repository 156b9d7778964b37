package job

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// WorkflowID returns the id of the job's Temporal workflow:
// job:<role>:<jobId> where jobId is made of up to 128 letters, digits, dots,
// dashes and underscores, else job:<role>:h:<first 32 hex digits of its
// SHA-256>. The hashed form is needed because the Temporal SDK copies the id
// into a gRPC header and refuses anything but printable ASCII, with an error
// that looks transient. The two forms cannot meet: a plain id has no colon.
func WorkflowID(role Role, jobID string) string {
	if plainID(jobID) {
		return "job:" + string(role) + ":" + jobID
	}
	sum := sha256.Sum256([]byte(jobID))
	return "job:" + string(role) + ":h:" + hex.EncodeToString(sum[:16])
}

func plainID(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9',
			c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// EntryEffect names the outcome of the run that the bridge started for an
// entry. Every delivery of that entry has the same effect, so it is stored and
// published once.
func EntryEffect(stream, entryID string) string { return "entry:" + stream + "/" + entryID }

// RunEffect names the outcome of a run a person started: a reset or a copy.
func RunEffect(runID string) string { return runPrefix + runID }

// IsRunEffect reports whether an effect is one of RunEffect.
func IsRunEffect(effect string) bool { return strings.HasPrefix(effect, runPrefix) }

const runPrefix = "run:"

// AnswerEffect names the repeated answer to an entry that asks again for a job
// already completed.
func AnswerEffect(stream, entryID string) string { return "answer:" + stream + "/" + entryID }

// RejectedID is the jobId under which the row of a rejected entry is kept. The
// decoder refuses real jobIds of this form.
func RejectedID(entryID string) string { return rejectedPrefix + entryID }

const rejectedPrefix = "entry:"

// CompareEntryIDs orders two stream entry ids as Redis does: by milliseconds,
// then by sequence. An empty or malformed id comes first.
func CompareEntryIDs(a, b string) int {
	am, as := splitEntryID(a)
	bm, bs := splitEntryID(b)
	return cmp.Or(cmp.Compare(am, bm), cmp.Compare(as, bs))
}

// EntryTime is the time in an entry id. Producers may set ids by hand, so it is
// for display only.
func EntryTime(entryID string) time.Time {
	ms, _ := splitEntryID(entryID)
	if ms == 0 || ms > maxEntryMillis {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// FirstOfMillisecond reports whether Redis's clock showed the time of the id when
// the entry was added, provided that Redis made the id. Ids with a sequence number
// above zero are added within the same millisecond, or while the clock is behind
// the newest id of the stream.
func FirstOfMillisecond(entryID string) bool {
	_, seq := splitEntryID(entryID)
	return seq == 0
}

// maxEntryMillis is the end of the year 9999, the last that RFC 3339 and the
// databases can hold.
const maxEntryMillis = 253402300799999

func splitEntryID(id string) (ms, seq uint64) {
	m, s, hasSeq := strings.Cut(id, "-")
	ms, err := strconv.ParseUint(m, 10, 64)
	if err != nil {
		return 0, 0
	}
	if !hasSeq {
		return ms, 0
	}
	if seq, err = strconv.ParseUint(s, 10, 64); err != nil {
		return 0, 0
	}
	return ms, seq
}
