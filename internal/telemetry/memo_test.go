package telemetry

import (
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
)

// asked counts what a handler is asked for, in all that is derived from it.
type asked struct {
	client.MetricsHandler
	mu     *sync.Mutex
	counts map[string]int
	tags   string
}

func newAsked() *asked {
	return &asked{MetricsHandler: client.MetricsNopHandler, mu: new(sync.Mutex), counts: map[string]int{}}
}

func (a *asked) note(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[what]++
}

func (a *asked) WithTags(tags map[string]string) client.MetricsHandler {
	derived := *a
	derived.tags += labels(tags)
	a.note("tags " + derived.tags)
	return &derived
}

func (a *asked) Counter(name string) client.MetricsCounter {
	a.note("counter " + name + " " + a.tags)
	return a.MetricsHandler.Counter(name)
}

func (a *asked) Timer(name string) client.MetricsTimer {
	a.note("timer " + name + " " + a.tags)
	return a.MetricsHandler.Timer(name)
}

func (a *asked) Gauge(name string) client.MetricsGauge {
	a.note("gauge " + name + " " + a.tags)
	return a.MetricsHandler.Gauge(name)
}

func TestMemoAsksOnce(t *testing.T) {
	t.Parallel()
	next := newAsked()
	m := newMemo(next)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			for _, queue := range []string{"a", "b"} {
				h := m.WithTags(map[string]string{"queue": queue, "type": "t"}).WithTags(nil).WithTags(map[string]string{"operation": "o"})
				h.Counter("c").Inc(1)
				h.Timer("t").Record(time.Second)
				h.Gauge("g").Update(1)
				m.Counter("c").Inc(1)
			}
		})
	}
	group.Wait()
	before := len(next.counts)
	for what := range next.counts {
		next.counts[what] = 0 // those who came at the same time may have asked more than once
	}
	for _, queue := range []string{"a", "b"} {
		h := m.WithTags(map[string]string{"type": "t", "queue": queue}).WithTags(map[string]string{"operation": "o"})
		h.Counter("c").Inc(1)
		h.Timer("t").Record(time.Second)
		h.Gauge("g").Update(1)
	}
	require.Len(t, next.counts, before)
	require.Equal(t, 2*(2+3)+1, before, "two sets of labels below two, three instruments each, and one without labels")
	for what, times := range next.counts {
		require.Zero(t, times, what)
	}
}

// Labels that nobody expects cost no memory for ever.
func TestMemoIsBounded(t *testing.T) {
	t.Parallel()
	next := newAsked()
	m := newMemo(next)
	for range 2 {
		for i := range maxRemembered + 10 {
			m.WithTags(map[string]string{"id": strconv.Itoa(i)}).Counter("c").Inc(1)
		}
	}
	remembered := 0
	m.tagged.Range(func(any, any) bool { remembered++; return true })
	require.Equal(t, maxRemembered, remembered)
	require.Equal(t, 2, next.counts["tags "+labels(map[string]string{"id": strconv.Itoa(maxRemembered + 9)})], "and is asked for again")
}
