package activities_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/llm"
)

type slotsFunc func(ctx context.Context) (func(error), error)

func (f slotsFunc) Acquire(ctx context.Context) (func(error), error) { return f(ctx) }

// noted records in which order places are taken and given back.
type noted struct{ events []string }

func (n *noted) add(event string) { n.events = append(n.events, event) }

func (n *noted) slots(_ context.Context) (func(error), error) {
	n.add("slot")
	return func(err error) {
		if err != nil {
			n.add("slot free, failed")
			return
		}
		n.add("slot free")
	}, nil
}

func (n *noted) gate(context.Context, string) (func(), error) {
	n.add("permit")
	return func() { n.add("permit free") }, nil
}

func TestRunHoldsItsPlacesDuringTheCall(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		call func() error // nil: another call's refusal keeps this one from being made
		want []string
	}{
		"answered": {
			func() error { return nil },
			[]string{"slot", "permit", "call", "permit free", "slot free", "kept"},
		},
		"failed": {
			func() error { return &llm.Error{Kind: llm.Unreachable} },
			[]string{"slot", "permit", "call", "permit free", "slot free, failed"},
		},
		"panicked": {
			func() error { panic("the task") },
			[]string{"slot", "permit", "call", "permit free", "slot free, failed"},
		},
		"refused without a call": {
			nil,
			[]string{"slot", "permit", "permit free", "slot free, failed"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			var n noted
			b.slots, b.gate = slotsFunc(n.slots), gateFunc(n.gate)
			b.store.saved = func() { n.add("kept") }
			if tt.call == nil {
				leave, err := b.cool.Enter(t.Context())
				require.NoError(t, err)
				leave(limited())
			}
			b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
				n.add("call")
				return llm.Answer{Text: "x"}, tt.call()
			}
			_, _ = b.run(t)
			require.Equal(t, tt.want, n.events)
		})
	}
}

func TestRunGivesATaskBackThatHasNoSlot(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		slots func(stop chan<- struct{}) slotsFunc
		code  string
		state string
	}{
		"calls have become long": {
			func(chan<- struct{}) slotsFunc {
				return func(context.Context) (func(error), error) { return nil, activities.ErrNoSlot }
			},
			activities.CodeNoSlot, "given back: calls take long, and all slots of this worker are taken",
		},
		"the worker stops": {
			func(stop chan<- struct{}) slotsFunc {
				return func(ctx context.Context) (func(error), error) {
					close(stop)
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
			},
			activities.CodeShutdown, "given back: the worker is shutting down",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			stop := make(chan struct{})
			b.env.SetWorkerStopChannel(stop)
			b.slots = tt.slots(stop)
			b.gate = gateFunc(func(context.Context, string) (func(), error) {
				t.Error("took a permit without a slot")
				return nil, errors.New("no slot")
			})
			b.env.SetHeartbeatDetails(map[string]any{"classified": 2, "returned": 1})
			_, err := b.run(t)
			var applicationErr *temporal.ApplicationError
			require.ErrorAs(t, err, &applicationErr)
			require.Equal(t, tt.code, applicationErr.Type())
			require.Contains(t, applicationErr.Message(), "worker")
			require.Equal(t, temporal.ApplicationErrorCategoryBenign, applicationErr.Category())
			require.False(t, applicationErr.NonRetryable())
			require.Positive(t, applicationErr.NextRetryDelay())
			require.Less(t, applicationErr.NextRetryDelay(), time.Second)
			require.Equal(t, map[string]any{"classified": 3.0, "returned": 2.0}, b.progress, "no failure, and no worker's death")
			require.Equal(t, tt.state, b.shown["state"])
			require.Empty(t, b.asked)
		})
	}
}

func TestBeatsWhileWaitingForASlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newRunBundle(t)
		s := watch(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		b.slots = slotsFunc(func(context.Context) (func(error), error) {
			return func(error) {}, s.await(ctx, "waiting for a slot of this worker")
		})
		_, err := b.run(t)
		require.NoError(t, err)
	})
}
