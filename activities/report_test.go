package activities_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/workflows"
)

// states lets a test wait for what the beats say.
type states struct {
	said chan string
	all  []map[string]any
}

func watch(t *testing.T, b *runBundle) *states {
	t.Helper()
	s := &states{said: make(chan string, 1000)}
	b.env.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
		var got map[string]any
		require.NoError(t, details.Get(&got))
		s.all = append(s.all, got)
		s.said <- got["state"].(string)
	})
	return s
}

// await returns when a beat says so, or with the context's error.
func (s *states) await(ctx context.Context, state string) error {
	for {
		select {
		case got := <-s.said:
			if got == state {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestBeatsSayWhatTheAttemptIsDoing goes through the states of a call that has to
// wait for the limit over all roles first.
func TestBeatsSayWhatTheAttemptIsDoing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newRunBundle(t)
		s := watch(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		b.gate = gateFunc(func(context.Context, string) (func(), error) {
			return func() {}, s.await(ctx, "waiting for MAX_TOTAL")
		})
		b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
			return llm.Answer{Text: "CANARY-answer"}, s.await(ctx, "calling the LLM")
		}
		b.call.Job.Task, b.call.Job.Payload = "CANARY-task", "CANARY-payload"
		_, err := b.run(t)
		require.NoError(t, err)
		require.NotEmpty(t, s.all)
		for _, said := range s.all {
			since, err := time.Parse(time.RFC3339, said["since"].(string))
			require.NoError(t, err)
			require.WithinDuration(t, time.Now(), since, time.Minute)
			delete(said, "since")
			delete(said, "state")
			require.Equal(t, map[string]any{
				"attempt": 1.0, "model": "ma", "endpoint": "http://llm:11434/v1/chat/completions", "classified": 0.0,
			}, said)
		}
	})
}

// TestBeatsOfOtherVersions: attempts of one job are made by workers of several
// versions while they are replaced.
func TestBeatsOfOtherVersions(t *testing.T) {
	t.Parallel()
	first := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	for name, before := range map[string]map[string]any{
		"earlier": {"first_failure_at": first, "classified": 3, "malformed": 1, "returned": 1},
		"later": {
			"first_failure_at": first, "classified": 3, "malformed": 1, "returned": 1,
			"state": map[string]any{"code": 7}, "since": "yesterday", "attempt": "third", "model": nil, "endpoint": []string{"a"}, "news": true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRunBundle(t)
			b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
				return llm.Answer{}, &llm.Error{Kind: llm.Unreachable}
			}
			b.env.SetHeartbeatDetails(before)
			// What the first released version reads.
			var left struct {
				FirstFailure time.Time `json:"first_failure_at"`
				Classified   int       `json:"classified"`
				Malformed    int       `json:"malformed"`
				Returned     int       `json:"returned"`
			}
			b.env.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
				require.NoError(t, details.Get(&left))
			})
			_, err := b.run(t)
			require.Error(t, err)
			require.True(t, first.Equal(left.FirstFailure))
			require.Equal(t, []int{4, 1, 1}, []int{left.Classified, left.Malformed, left.Returned})
		})
	}
}

// TestPendingCallSaysWhatItWaitsFor looks at the last beat and the failure of an
// attempt that ended without an answer for other reasons than the LLM's, which
// TestRunDecides covers.
func TestPendingCallSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		prepare func(t *testing.T, b *runBundle)
		state   string // or how it begins
		text    []string
	}{
		"the endpoint asks for patience": {
			prepare: func(t *testing.T, b *runBundle) {
				t.Helper()
				leave, err := b.cool.Enter(t.Context())
				require.NoError(t, err)
				leave(limited())
			},
			state: "waiting: endpoint asks for patience until ",
			text:  []string{"nothing was sent", "retry-after until "},
		},
		"another call probes": {
			prepare: func(t *testing.T, b *runBundle) {
				t.Helper()
				leave, err := b.cool.Enter(t.Context())
				require.NoError(t, err)
				leave(limited())
				<-time.After(11 * time.Second)
				_, err = b.cool.Enter(t.Context())
				require.NoError(t, err)
			},
			state: "waiting: another call finds out whether the endpoint accepts again",
			text:  []string{"nothing was sent"},
		},
		"the worker stops": {
			prepare: func(_ *testing.T, b *runBundle) {
				stop := make(chan struct{})
				close(stop)
				b.env.SetWorkerStopChannel(stop)
				b.gate = gateFunc(func(ctx context.Context, _ string) (func(), error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
			},
			state: "given back: the worker is shutting down",
			text:  []string{"another worker takes the job over"},
		},
		"the limit cannot be asked": {
			prepare: func(_ *testing.T, b *runBundle) {
				b.gate = gateFunc(func(context.Context, string) (func(), error) { return nil, errors.New("the Redis client is closed") })
			},
			state: "failed with total_limit_unavailable, waiting for the next attempt",
			text:  []string{"the Redis client is closed", "check REDIS_CONNECTION"},
		},
		"a defect": {
			prepare: func(_ *testing.T, b *runBundle) {
				b.llm = func(context.Context, llm.Request) (llm.Answer, error) { panic("the task") }
			},
			state: "failed with executor_panic, waiting for the next attempt",
			text:  []string{"please report it"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newRunBundle(t)
				tt.prepare(t, b)
				_, err := b.run(t)
				var applicationErr *temporal.ApplicationError
				require.ErrorAs(t, err, &applicationErr)
				require.False(t, applicationErr.NonRetryable())
				for _, want := range append(tt.text, "(attempt 1, model ma, endpoint http://llm:11434/v1/chat/completions)") {
					require.Contains(t, applicationErr.Message(), want)
				}
				state, _ := b.shown["state"].(string)
				require.True(t, strings.HasPrefix(state, tt.state), state)
				if rest := strings.TrimPrefix(state, tt.state); rest != "" {
					until, err := time.Parse(time.RFC3339, rest)
					require.NoError(t, err)
					require.True(t, until.After(time.Now()))
					require.Contains(t, applicationErr.Message(), "retry-after until "+rest)
				} else {
					require.NotContains(t, applicationErr.Message(), "retry-after")
				}
			})
		})
	}
}

// TestPendingCallOfAHostileModel: a chat entry may ask for any model.
func TestPendingCallOfAHostileModel(t *testing.T) {
	t.Parallel()
	b := newRunBundle(t)
	b.call.Model = "m\x1b[2J\n\u202e" + strings.Repeat("x", 10_000)
	b.llm = func(context.Context, llm.Request) (llm.Answer, error) {
		return llm.Answer{}, &llm.Error{Kind: llm.Unreachable}
	}
	_, err := b.run(t)
	var applicationErr *temporal.ApplicationError
	require.ErrorAs(t, err, &applicationErr)
	for _, text := range []string{applicationErr.Message(), b.shown["model"].(string)} {
		require.Contains(t, text, `m\u001b[2J\n\u202exxx`)
		require.NotContains(t, text, "\x1b")
		require.Less(t, len(text), 1500)
	}
	require.Contains(t, applicationErr.Message(), "endpoint http://llm:11434/v1/chat/completions)")
	var failure workflows.Failure
	require.NoError(t, applicationErr.Details(&failure))
	require.Equal(t, b.call.Model, failure.Model, "the row takes it as it is")
}
