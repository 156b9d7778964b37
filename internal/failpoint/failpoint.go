// Package failpoint names the places where a crash would hurt most, so that a
// test can crash there: a signal from outside arrives some microseconds too
// early or too late, and what lies between two steps is never tested.
//
// A program built with the tag failpoints reads EXEC_FAIL when it passes the
// first point. It is a comma-separated list of
//
//	<point>:<n>:<action>
//
// where n counts this process's passes of the point, from 1, and the action is
// one of
//
//	kill            SIGKILL to the own process; nothing is flushed, closed or told
//	error           the place fails as if what it waits for had failed
//	panic           the goroutine that passes panics
//	sleep[=10s]     the place takes that much longer, unless its context ends
//
// For all but kill n may be "n+": from the n-th pass on. Each time a point acts
// it writes the line "failpoint <point> pass <n>: <action>" to stderr first, so
// that a test can tell a fault that was survived from one that never happened.
//
// Without the tag all of this is gone: every call is an inlined nil.
package failpoint

// Point is a place in the program that can be made to fail.
type Point string

// The points, in the order in which a job comes by.
const (
	// Read: the bridge has got an entry through its group, as a new one or as one
	// of its own pending ones. One pass per entry.
	Read Point = "read"
	// Claimed: the bridge has taken an entry over from another consumer. One pass
	// per entry.
	Claimed Point = "claimed"
	// Decode: the bridge is about to decode an entry.
	Decode Point = "decode"
	// StartSent: the server has started a run and its answer has not been looked
	// at. An error is a lost answer, which the SDK answers by asking again.
	StartSent Point = "start_sent"
	// Started: the bridge knows what became of its start request and has not
	// noted it yet.
	Started Point = "started"
	// Leased: the attempt may call, because MAX_TOTAL has room or is not set.
	Leased Point = "leased"
	// LLMSent: the request to the LLM is on its way. A fault counts as one of the
	// connection.
	LLMSent Point = "llm_sent"
	// LLMDone: the LLM's answer is complete and not kept anywhere yet.
	LLMDone Point = "llm_done"
	// AnswerKept: the answer is where a later attempt finds it.
	AnswerKept Point = "answer_kept"
	// PersistTx: a row is written and its transaction not committed yet. One pass
	// per row, also where a transaction holds several; rows that stay as they are
	// do not count.
	PersistTx Point = "persist_tx"
	// Persisted: the row is committed, by the workflow's activity or by the
	// bridge. So with the points that follow.
	Persisted Point = "persisted"
	// Published: the update is in its stream.
	Published Point = "published"
	// DeadLettered: the dead letter is in its stream; the row does not say so yet.
	DeadLettered Point = "dead_lettered"
	// Acked: the entry is acknowledged.
	Acked Point = "acked"
	// Settled: the bridge has closed an entry's books itself, and not noted that
	// there is nothing left to do. Entries that a run settles do not pass it; their
	// last point is Acked.
	Settled Point = "settled"
)

// Points returns all points.
func Points() []Point {
	return []Point{
		Read, Claimed, Decode, StartSent, Started, Leased, LLMSent, LLMDone, AnswerKept,
		PersistTx, Persisted, Published, DeadLettered, Acked, Settled,
	}
}
