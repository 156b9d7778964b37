package worker

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	sdk "go.temporal.io/sdk/worker"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record is what the workers of one pool did, in order.
type record struct {
	mu     sync.Mutex
	events []string
	fail   map[string][]error // per task queue: errors of the coming starts
	hang   chan struct{}      // if set, the workflows worker stops when it is closed
}

func (r *record) add(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

func (r *record) nextError(queue string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.fail[queue]) == 0 {
		return nil
	}
	err := r.fail[queue][0]
	r.fail[queue] = r.fail[queue][1:]
	return err
}

func (r *record) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// fakeWorker is an SDK worker that only records; what it does not override
// panics.
type fakeWorker struct {
	sdk.Worker
	queue string
	*record
}

func (w *fakeWorker) Start() error {
	if err := w.nextError(w.queue); err != nil {
		w.add("failed " + w.queue)
		return err
	}
	w.add("start " + w.queue)
	return nil
}

func (w *fakeWorker) Stop() {
	if w.hang != nil && w.queue == "w" {
		<-w.hang
	}
	w.add("stop " + w.queue)
}

func newTestPool(t *testing.T, r *record, cfg Config, fatal func(error)) *Pool {
	t.Helper()
	nothing := func(sdk.Registry) {}
	components := []Component{
		{Name: QueueNameWorkflows, TaskQueue: "w", Register: nothing},
		{Name: string(job.Agent), TaskQueue: "a", Register: nothing},
		{Name: string(job.Chat), TaskQueue: "c", Register: nothing},
	}
	if cfg.Queues == nil {
		cfg.Queues = []string{"workflows", "agent", "chat"}
	}
	p, err := NewPool(cfg, nil, components, nil, slog.New(slog.NewTextHandler(t.Output(), nil)), fatal)
	require.NoError(t, err)
	p.newWorker = func(_ client.Client, queue string, _ sdk.Options) sdk.Worker {
		return &fakeWorker{queue: queue, record: r}
	}
	return p
}

func TestPoolStopsRolesBeforeWorkflows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &record{}
		p := newTestPool(t, r, Config{}, func(err error) { t.Error(err) })
		require.Error(t, p.Check(t.Context()), "not ready before the start")
		p.Start()
		synctest.Wait()
		require.NoError(t, p.Check(t.Context()))
		p.Stop()
		require.Error(t, p.Check(t.Context()))
		events := r.all()
		require.Equal(t, []string{"start w", "start a", "start c"}, events[:3])
		require.ElementsMatch(t, []string{"stop a", "stop c"}, events[3:5])
		require.Equal(t, "stop w", events[5])
	})
}

func TestPoolStopIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &record{hang: make(chan struct{})}
		p := newTestPool(t, r, Config{}, func(err error) { t.Error(err) })
		p.Start()
		synctest.Wait()
		began := time.Now()
		p.Stop()
		require.Equal(t, stopWorkflows+linger, time.Since(began), "a final step that hangs holds up nothing")
		require.NotContains(t, r.all(), "stop w")
		close(r.hang)
		synctest.Wait()
		require.Contains(t, r.all(), "stop w")
	})
}

func TestPoolStartsAllOrNoneAndTriesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &record{fail: map[string][]error{"c": {errors.New("unreachable"), errors.New("unreachable")}}}
		p := newTestPool(t, r, Config{}, func(err error) { t.Error(err) })
		p.Start()
		synctest.Wait()
		require.Equal(t, "failed c", r.all()[2])
		require.ElementsMatch(t, []string{"stop w", "stop a"}, r.all()[3:], "those that started are stopped again")
		require.Error(t, p.Check(t.Context()))
		<-time.After(time.Minute)
		require.NoError(t, p.Check(t.Context()))
		p.Stop()
	})
}

func TestPoolGivesUpOnAMissingNamespace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &record{fail: map[string][]error{"w": {serviceerror.NewNamespaceNotFound("nowhere")}}}
		var fatal []error
		p := newTestPool(t, r, Config{}, func(err error) { fatal = append(fatal, err) })
		p.Start()
		synctest.Wait()
		require.Len(t, fatal, 1)
		require.ErrorContains(t, fatal[0], "TEMPORAL_NAMESPACE")
		p.Stop()
		require.Equal(t, []string{"failed w"}, r.all())
	})
}

func TestPoolStopWhileTemporalIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &record{fail: map[string][]error{"w": slices.Repeat([]error{errors.New("unreachable")}, 100)}}
		p := newTestPool(t, r, Config{}, func(err error) { t.Error(err) })
		p.Start()
		<-time.After(time.Minute)
		p.Stop()
		require.NotContains(t, r.all(), "start w")
	})
}

func TestSelectedQueues(t *testing.T) {
	t.Parallel()
	r := &record{}
	p := newTestPool(t, r, Config{Queues: []string{"chat", "workflows", "chat"}}, nil)
	require.Len(t, p.components, 2)
	_, err := NewPool(Config{Queues: []string{"cook"}}, nil, p.components, nil, nil, nil)
	require.ErrorContains(t, err, "cook")
	require.ErrorContains(t, err, "--queues")
	_, err = NewPool(Config{Queues: []string{"agent"}}, nil, p.components, nil, nil, nil)
	require.Error(t, err, "a known queue without a component")
	_, err = NewPool(Config{}, nil, p.components, nil, nil, nil)
	require.ErrorContains(t, err, "--queues", "a worker that serves nothing")
}

func TestSlots(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		cfg  Config
		want int
	}{
		"the role's limit":                    {Config{Slots: map[job.Role]int{job.Agent: 20}, Unlimited: 1000}, 20},
		"unlimited":                           {Config{Unlimited: 1000}, 1000},
		"not more than the total":             {Config{Slots: map[job.Role]int{job.Agent: 20}, Unlimited: 1000, Total: 7}, 7},
		"unlimited within the total":          {Config{Unlimited: 1000, Total: 50}, 50},
		"the role's limit is below the total": {Config{Slots: map[job.Role]int{job.Agent: 2}, Total: 7}, 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := RoleComponent(tt.cfg, job.Agent, NewSlots(tt.cfg, job.Agent), nil)
			require.Equal(t, tt.want, c.Slots)
			require.Equal(t, workflows.RoleQueue(job.Agent), c.TaskQueue)
			require.True(t, c.Options.DisableWorkflowWorker)
		})
	}
}

// A second, the default, is too short for a starved machine: every task of a
// large job would fail there, however often it is tried.
func TestWorkflowsHaveTimeToCompute(t *testing.T) {
	t.Parallel()
	require.GreaterOrEqual(t, WorkflowsComponent(nil).Options.DeadlockDetectionTimeout, 10*time.Second)
}
