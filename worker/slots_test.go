package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	sdk "go.temporal.io/sdk/worker"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

func agentSlots(limit int) *Slots {
	return NewSlots(Config{Slots: map[job.Role]int{job.Agent: limit}, Unlimited: 1000}, job.Agent)
}

// callFor makes a call of that length, with a slot that is free.
func callFor(t *testing.T, s *Slots, d time.Duration, err error) {
	t.Helper()
	free, acquireErr := s.Acquire(t.Context())
	require.NoError(t, acquireErr)
	<-time.After(d)
	free(err)
}

// reserve waits in the background for n slots and counts those it got.
func reserve(ctx context.Context, s *Slots, n int) *atomic.Int32 {
	var got atomic.Int32
	for range n {
		go func() {
			if permit, err := s.ReserveSlot(ctx, nil); err == nil && permit != nil {
				got.Add(1)
			}
		}()
	}
	return &got
}

func TestSlotsForTheSDK(t *testing.T) {
	t.Parallel()
	repeat := func(n int, d time.Duration) []time.Duration {
		all := make([]time.Duration, n)
		for i := range all {
			all[i] = d
		}
		return all
	}
	failed := errors.New("failed")
	tests := map[string]struct {
		limit   int
		total   int
		calls   []time.Duration // that have ended
		err     error           // of the last of them
		running int             // calls under way
		since   time.Duration   // when they began
		want    int
	}{
		"nothing is known yet":                   {limit: 5, want: 5},
		"the first call is under way":            {limit: 1, running: 1, since: time.Millisecond, want: 1},
		"calls of a second":                      {limit: 5, calls: repeat(1, time.Second), want: 7},
		"many calls of a second":                 {limit: 20, calls: repeat(9, time.Second), want: 25},
		"one at a time":                          {limit: 1, calls: repeat(1, time.Second), want: 2},
		"calls of three seconds":                 {limit: 5, calls: repeat(1, 3*time.Second), want: 6},
		"longer calls":                           {limit: 5, calls: repeat(1, 3*time.Second+1), want: 5},
		"calls that take nothing":                {limit: 5, calls: repeat(1, 0), want: 10},
		"many calls that take nothing":           {limit: 500, calls: repeat(1, 0), want: 564},
		"no limit":                               {limit: 0, calls: repeat(1, 0), want: 1000},
		"no limit but the total":                 {limit: 0, total: 4, calls: repeat(1, time.Second), want: 5},
		"one long call among short ones":         {limit: 5, calls: append(repeat(9, time.Second), 9*time.Second), want: 6},
		"calls have become longer":               {limit: 5, calls: append(repeat(9, time.Second), repeat(9, 9*time.Second)...), want: 5},
		"calls have become shorter":              {limit: 5, calls: append(repeat(9, 9*time.Second), repeat(18, time.Second)...), want: 6},
		"all calls go on for longer than usual":  {limit: 5, calls: repeat(1, 100*time.Millisecond), running: 5, since: time.Second, want: 7},
		"all calls hang":                         {limit: 5, calls: repeat(1, 100*time.Millisecond), running: 5, since: 3*time.Second + 1, want: 5},
		"some calls hang, and a slot is free":    {limit: 5, calls: repeat(1, time.Second), running: 4, since: time.Hour, want: 7},
		"a refusal tells nothing":                {limit: 5, calls: repeat(1, time.Millisecond), err: failed, want: 5},
		"a refusal among calls tells nothing":    {limit: 5, calls: append(repeat(1, time.Second), time.Millisecond), err: failed, want: 7},
		"a call that timed out has been as long": {limit: 5, calls: append(repeat(1, time.Second), time.Minute), err: failed, want: 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := NewSlots(Config{Slots: map[job.Role]int{job.Agent: tt.limit}, Total: tt.total, Unlimited: 1000}, job.Agent)
				for i, d := range tt.calls {
					var err error
					if i == len(tt.calls)-1 {
						err = tt.err
					}
					callFor(t, s, d, err)
				}
				for range tt.running {
					free, err := s.Acquire(t.Context())
					require.NoError(t, err)
					defer free(nil)
				}
				<-time.After(tt.since)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := reserve(ctx, s, tt.want+3)
				synctest.Wait()
				require.EqualValues(t, tt.want, got.Load())
				require.Nil(t, s.TryReserveSlot(nil))
				require.Equal(t, s.limit, s.MaxSlots())
			})
		})
	}
}

func TestReserveWaitsForASlot(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		free func(t *testing.T, s *Slots)
		want int32
	}{
		"given back":        {func(_ *testing.T, s *Slots) { s.ReleaseSlot(nil) }, 1},
		"calls are short":   {func(t *testing.T, s *Slots) { t.Helper(); callFor(t, s, time.Second, nil) }, 1},
		"both":              {func(t *testing.T, s *Slots) { t.Helper(); callFor(t, s, time.Second, nil); s.ReleaseSlot(nil) }, 2},
		"calls are long":    {func(t *testing.T, s *Slots) { t.Helper(); callFor(t, s, time.Minute, nil) }, 0},
		"nothing happens":   {func(*testing.T, *Slots) {}, 0},
		"more than waiting": {func(_ *testing.T, s *Slots) { s.ReleaseSlot(nil); s.ReleaseSlot(nil); s.ReleaseSlot(nil) }, 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := agentSlots(3)
				ctx, cancel := context.WithCancel(t.Context())
				require.NotNil(t, s.TryReserveSlot(nil))
				held := reserve(ctx, s, 2)
				synctest.Wait()
				require.EqualValues(t, 2, held.Load())
				got := reserve(ctx, s, 3)
				synctest.Wait()
				require.Zero(t, got.Load())
				tt.free(t, s)
				synctest.Wait()
				require.Equal(t, tt.want, got.Load())
				cancel()
				synctest.Wait() // nobody is left waiting, or the bubble does not end
				_, err := s.ReserveSlot(ctx, nil)
				for err == nil { // free ones are given out all the same
					_, err = s.ReserveSlot(ctx, nil)
				}
				require.ErrorIs(t, err, context.Canceled)
			})
		})
	}
}

// Calls that have lasted for long raise the estimate, and the next one lowers it
// again.
func TestReserveGoesOnWhenCallsDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := agentSlots(1)
		callFor(t, s, time.Second, nil)
		free, err := s.Acquire(t.Context())
		require.NoError(t, err)
		<-time.After(4 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := reserve(ctx, s, 3)
		synctest.Wait()
		require.EqualValues(t, 1, got.Load())
		free(nil)
		synctest.Wait()
		require.EqualValues(t, 2, got.Load())
	})
}

func TestAcquireIsExactAndInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := agentSlots(2)
		callFor(t, s, time.Second, nil)
		var (
			mu      sync.Mutex
			order   []int
			running int
			most    int
			done    sync.WaitGroup
		)
		for i := range 9 {
			done.Go(func() {
				free, err := s.Acquire(t.Context())
				if !assertNoError(t, err) {
					return
				}
				mu.Lock()
				order = append(order, i)
				running++
				most = max(most, running)
				mu.Unlock()
				<-time.After(time.Second)
				mu.Lock()
				running--
				mu.Unlock()
				free(nil)
			})
			<-time.After(time.Millisecond) // nothing happens at the same time
		}
		done.Wait()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}, order)
		require.Equal(t, 2, most)
	})
}

func assertNoError(t *testing.T, err error) bool {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

func TestAcquireDoesNotWaitForLong(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		usual, running time.Duration // the call before, the call under way
		stop           time.Duration // when the context ends
		waits          time.Duration
		want           error
		fetches        bool // ahead, afterwards
	}{
		"a short call":                       {usual: time.Second, running: time.Second, waits: time.Second, fetches: true},
		"a call that turns out long":         {usual: time.Second, running: time.Minute, waits: patience, want: activities.ErrNoSlot},
		"calls are long":                     {usual: time.Minute, running: time.Minute, want: activities.ErrNoSlot},
		"the worker stops, or a user":        {usual: time.Second, running: 2 * time.Second, stop: time.Second, waits: time.Second, want: context.Canceled, fetches: true},
		"almost too long":                    {usual: time.Second, running: patience - 1, waits: patience - 1, fetches: true},
		"stopped while nobody would wait on": {usual: time.Minute, running: time.Minute, stop: time.Second, want: activities.ErrNoSlot},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := agentSlots(1)
				callFor(t, s, tt.usual, nil)
				var calling sync.WaitGroup
				calling.Go(func() { callFor(t, s, tt.running, nil) })
				synctest.Wait()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.stop > 0 {
					time.AfterFunc(tt.stop, cancel)
				}
				began := time.Now()
				free, err := s.Acquire(ctx)
				require.ErrorIs(t, err, tt.want)
				require.Equal(t, tt.waits, time.Since(began))
				require.Equal(t, tt.fetches, s.room() > s.limit)
				if err == nil {
					free(nil)
				}
				calling.Wait()
				callFor(t, s, 0, nil) // those who gave up hold nothing
			})
		})
	}
}

// Pollers that come and go, and calls of changing length: whoever waits gets a
// slot in the end.
func TestSlotsAreNeverLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, pollers, rounds = 3, 6, 300
		s := agentSlots(limit)
		var running atomic.Int32
		var all sync.WaitGroup
		for p := range pollers {
			all.Go(func() {
				for i := range rounds {
					if i%7 == p {
						gone, leave := context.WithCancel(t.Context())
						leave()
						if _, err := s.ReserveSlot(gone, nil); err == nil {
							s.ReleaseSlot(nil)
						}
					}
					if _, err := s.ReserveSlot(t.Context(), nil); !assertNoError(t, err) {
						return
					}
					free, err := s.Acquire(t.Context())
					if assertNoError(t, err) {
						if n := running.Add(1); n > limit {
							t.Errorf("%d calls under way", n)
						}
						<-time.After(time.Duration(i%3) * time.Millisecond)
						running.Add(-1)
						free(nil)
					}
					s.ReleaseSlot(nil)
				}
			})
		}
		all.Wait()
		require.Zero(t, s.issued)
		require.Zero(t, s.running)
	})
}

// gap is how long after a report the next task comes, half of it for each.
const gap = 80 * time.Millisecond

// backlog stands for a server with more tasks than slots, at the edge where the
// SDK would send.
type backlog struct {
	mu      sync.Mutex
	input   *commonpb.Payloads
	left    int
	fetched int // and not yet reported
	most    int
	failed  []proto.Message
	done    chan struct{} // closed with the last report
}

func (b *backlog) intercept(ctx context.Context, _ string, req, reply any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	select {
	case <-time.After(gap / 2):
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	switch req.(type) {
	case *workflowservice.PollActivityTaskQueueRequest:
		if task := b.next(); task != nil {
			proto.Merge(reply.(proto.Message), task)
			return nil
		}
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case *workflowservice.RespondActivityTaskCompletedRequest:
		b.report(nil)
	case *workflowservice.RespondActivityTaskFailedRequest:
		b.report(req.(proto.Message))
	}
	return nil
}

func (b *backlog) next() *workflowservice.PollActivityTaskQueueResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		return nil
	}
	b.left--
	b.fetched++
	b.most = max(b.most, b.fetched)
	now := timestamppb.Now()
	return &workflowservice.PollActivityTaskQueueResponse{
		TaskToken: []byte(fmt.Sprint(b.left)), WorkflowNamespace: "ns", ActivityId: "1", Attempt: 1, Input: b.input,
		WorkflowExecution:           &commonpb.WorkflowExecution{WorkflowId: fmt.Sprint("w", b.left), RunId: "r"},
		ActivityType:                &commonpb.ActivityType{Name: workflows.RoleActivity(job.Agent)},
		WorkflowType:                &commonpb.WorkflowType{Name: workflows.WorkflowType},
		ScheduledTime:               now,
		CurrentAttemptScheduledTime: now,
		StartedTime:                 now,
		StartToCloseTimeout:         durationpb.New(time.Hour),
		ScheduleToCloseTimeout:      durationpb.New(time.Hour),
		HeartbeatTimeout:            durationpb.New(time.Minute),
	}
}

func (b *backlog) report(failed proto.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetched--
	if failed != nil {
		b.failed = append(b.failed, failed)
	}
	if b.left == 0 && b.fetched == 0 {
		close(b.done)
	}
}

// slotStub is a role activity that does nothing but hold a slot.
type slotStub struct {
	roleStub
	slots   *Slots
	running atomic.Int32
	most    atomic.Int32
}

func (s *slotStub) Run(ctx context.Context, _ workflows.Call) (workflows.Answer, error) {
	free, err := s.slots.Acquire(ctx)
	if err != nil {
		return workflows.Answer{}, err
	}
	defer free(nil)
	n := s.running.Add(1)
	defer s.running.Add(-1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	<-time.After(time.Second)
	return workflows.Answer{}, nil
}

// TestSlotsStayBusy runs a real worker of the SDK. With no more slots than calls,
// each would be idle for the gap between two calls.
func TestSlotsStayBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, tasks = 5, 200
		input, err := converter.GetDefaultDataConverter().ToPayloads(workflows.Call{})
		require.NoError(t, err)
		server := &backlog{input: input, left: tasks, done: make(chan struct{})}
		c, err := client.NewLazyClient(client.Options{
			Namespace:         "ns",
			HostPort:          "passthrough:///nowhere",
			Logger:            log.NewStructuredLogger(slog.New(slog.DiscardHandler)),
			ConnectionOptions: client.ConnectionOptions{DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(server.intercept)}},
		})
		require.NoError(t, err)
		defer c.Close()
		stub := &slotStub{slots: agentSlots(limit)}
		component := RoleComponent(Config{}, job.Agent, stub.slots, stub)
		w := sdk.New(c, component.TaskQueue, component.Options)
		component.Register(w)
		began := time.Now()
		require.NoError(t, w.Start())
		defer w.Stop()
		select {
		case <-server.done:
		case <-time.After(time.Minute):
			t.Fatal("tasks are left")
		}
		require.Empty(t, server.failed)
		require.EqualValues(t, limit, stub.most.Load(), "calls under way at once")
		require.Equal(t, limit+2, server.most, "tasks fetched and not reported")
		busy := (tasks / limit * time.Second).Seconds() / time.Since(began).Seconds()
		require.Greater(t, busy, 0.98, "part of the time the slots were in use")
	})
}
