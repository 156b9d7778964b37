package stream

import (
	"fmt"

	"github.com/nodpt/executor/internal/job"
)

// Batch is a set of entries taken from the pending list.
type Batch struct {
	Entries []job.Entry
	// Deleted are ids that were pending although their entries are gone, trimmed
	// or deleted by someone. Their jobs are lost unless they have been started.
	// Acknowledging such an id is always right.
	Deleted []string
}

// replyError says that a reply had another shape than documented, without
// repeating any of it.
type replyError struct{ want string }

func (e replyError) Error() string { return "unexpected reply: no " + e.want }

// The library offers stream entries as maps, which lose repeated fields, and
// hides deleted entries. So replies are taken apart here. In RESP2 they consist
// of []any, string, int64 and nil.

// streamReply reads the answer of XREADGROUP or XREAD for one stream:
// [[stream, entries]].
func streamReply(stream string, reply any) (Batch, error) {
	streams, ok := reply.([]any)
	if !ok {
		return Batch{}, replyError{"list of streams"}
	}
	var all Batch
	for _, item := range streams {
		pair, ok := item.([]any)
		if !ok || len(pair) != 2 {
			return Batch{}, replyError{"stream and its entries"}
		}
		b, err := entriesReply(stream, pair[1])
		if err != nil {
			return Batch{}, err
		}
		all.Entries = append(all.Entries, b.Entries...)
		all.Deleted = append(all.Deleted, b.Deleted...)
	}
	return all, nil
}

// entriesReply reads a list of [id, [name, value, …]], where nil instead of the
// pairs means that the entry was deleted.
func entriesReply(stream string, reply any) (Batch, error) {
	items, ok := reply.([]any)
	if !ok {
		return Batch{}, replyError{"list of entries"}
	}
	var b Batch
	for _, item := range items {
		if item == nil {
			continue // Redis 6.2 answers XCLAIM of a deleted entry so
		}
		pair, ok := item.([]any)
		if !ok || len(pair) != 2 {
			return Batch{}, replyError{"entry"}
		}
		id, ok := pair[0].(string)
		if !ok {
			return Batch{}, replyError{"entry id"}
		}
		if pair[1] == nil {
			b.Deleted = append(b.Deleted, id)
			continue
		}
		values, err := stringsReply(pair[1])
		if err != nil || len(values)%2 != 0 {
			return Batch{}, replyError{"entry fields"}
		}
		fields := make([]job.Field, 0, len(values)/2)
		for i := 0; i < len(values); i += 2 {
			fields = append(fields, job.Field{Name: values[i], Value: values[i+1]})
		}
		b.Entries = append(b.Entries, job.Entry{Stream: stream, ID: id, Fields: fields})
	}
	return b, nil
}

func stringsReply(reply any) ([]string, error) {
	items, ok := reply.([]any)
	if !ok {
		return nil, replyError{"list of strings"}
	}
	out := make([]string, 0, len(items))
	for _, item := range items {
		s, ok := item.(string)
		if !ok {
			return nil, replyError{"string"}
		}
		out = append(out, s)
	}
	return out, nil
}

// listReply reads a list of exactly n parts.
func listReply(reply any, n int) ([]any, error) {
	items, ok := reply.([]any)
	if !ok || len(items) != n {
		return nil, replyError{fmt.Sprintf("list of %d parts", n)}
	}
	return items, nil
}
