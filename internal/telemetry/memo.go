package telemetry

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.temporal.io/sdk/client"
)

// maxRemembered bounds the sets of labels that are remembered. The SDK's come from
// some dozens of operations, queues and activities.
const maxRemembered = 4096

// memo is a metrics handler for the SDK that remembers what it was asked for. The
// SDK asks for the same labels and instruments again with every request and every
// task, which was a sixth of all that a process allocated for a short job.
type memo struct {
	next client.MetricsHandler
	room *atomic.Int64 // of all handlers derived from one

	tagged, counters, gauges, timers sync.Map // by labels, by name
}

func newMemo(next client.MetricsHandler) *memo {
	room := new(atomic.Int64)
	room.Store(maxRemembered)
	return &memo{next: next, room: room}
}

// WithTags implements client.MetricsHandler.
func (m *memo) WithTags(tags map[string]string) client.MetricsHandler {
	if len(tags) == 0 {
		return m
	}
	key := labels(tags)
	if known, ok := m.tagged.Load(key); ok {
		return known.(*memo)
	}
	derived := &memo{next: m.next.WithTags(tags), room: m.room}
	if m.room.Add(-1) < 0 {
		m.room.Add(1)
		return derived
	}
	known, loaded := m.tagged.LoadOrStore(key, derived)
	if loaded {
		m.room.Add(1)
	}
	return known.(*memo)
}

// labels is the same text for the same labels.
func labels(tags map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		b.WriteString(name)
		b.WriteByte(0)
		b.WriteString(tags[name])
		b.WriteByte(0)
	}
	return b.String()
}

// Counter implements client.MetricsHandler.
func (m *memo) Counter(name string) client.MetricsCounter {
	return remembered(&m.counters, name, m.next.Counter)
}

// Gauge implements client.MetricsHandler.
func (m *memo) Gauge(name string) client.MetricsGauge {
	return remembered(&m.gauges, name, m.next.Gauge)
}

// Timer implements client.MetricsHandler.
func (m *memo) Timer(name string) client.MetricsTimer {
	return remembered(&m.timers, name, m.next.Timer)
}

// remembered returns the instrument of a name. Names are constants of the SDK.
func remembered[T any](known *sync.Map, name string, create func(string) T) T {
	if found, ok := known.Load(name); ok {
		return found.(T)
	}
	found, _ := known.LoadOrStore(name, create(name))
	return found.(T)
}
