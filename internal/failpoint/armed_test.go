//go:build failpoints

package failpoint

import (
	"bytes"
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/failpointtest"
)

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"no form":             {"read", "must have the form"},
		"too many parts":      {"read:1:kill:now", "must have the form"},
		"trailing comma":      {"read:1:kill,", "must have the form"},
		"unknown point":       {"reed:1:kill", "no such point"},
		"point in capitals":   {"READ:1:kill", "no such point"},
		"pass 0":              {"read:0:kill", "a number from 1"},
		"negative pass":       {"read:-1:kill", "a number from 1"},
		"no number":           {"read:once:kill", "a number from 1"},
		"only a plus":         {"read:+:error", "a number from 1"},
		"unknown action":      {"read:1:explode", "the action must be"},
		"kill with a value":   {"read:1:kill=9", "the action must be"},
		"kill from then on":   {"read:1+:kill", "killed once"},
		"sleep without unit":  {"read:1:sleep=10", "takes a duration"},
		"sleep of no time":    {"read:1:sleep=0s", "takes a duration"},
		"empty sleep":         {"read:1:sleep=", "takes a duration"},
		"panic with a value":  {"read:1:panic=now", "the action must be"},
		"one wrong among two": {"read:1:error,acked:1:oops", `"acked:1:oops"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parse(tt.text)
			require.ErrorContains(t, err, "EXEC_FAIL")
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestParseNamesEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := parse("a:1:kill,read:1:error,b:2:kill")
	require.ErrorContains(t, err, `"a:1:kill"`)
	require.ErrorContains(t, err, `"b:2:kill"`)
	require.NotContains(t, err.Error(), `"read:1:error"`)
}

func TestParseAcceptsEveryPoint(t *testing.T) {
	t.Parallel()
	for _, point := range Points() {
		for _, action := range []string{"1:kill", "2:error", "3+:error", "4:sleep", "5+:sleep=1ms", "6+:panic"} {
			p, err := parse(" " + string(point) + ":" + action + " ")
			require.NoError(t, err)
			require.Len(t, p.points, 1)
		}
	}
	for _, empty := range []string{"", "  "} {
		p, err := parse(empty)
		require.NoError(t, err)
		require.Empty(t, p.points)
	}
}

func never() { panic("killed") }

func mustParse(t *testing.T, text string) *plan {
	t.Helper()
	p, err := parse(text)
	require.NoError(t, err)
	return p
}

func TestErrorAtTheNthPass(t *testing.T) {
	t.Parallel()
	p := mustParse(t, "published:2:error,published:4+:error")
	var out bytes.Buffer
	for pass, want := range []bool{false, true, false, true, true} {
		err := p.hit(t.Context(), Published, &out, never)
		require.Equal(t, want, err != nil, "pass %d", pass+1)
		if want {
			require.EqualError(t, err, "failpoint published: injected error")
		}
		require.NoError(t, p.hit(t.Context(), Acked, &out, never), "other points are not touched")
	}
	require.Equal(t, "failpoint published pass 2: error\nfailpoint published pass 4: error\nfailpoint published pass 5: error\n", out.String())
}

func TestPanicAtTheNthPass(t *testing.T) {
	t.Parallel()
	p := mustParse(t, "leased:2+:panic")
	var out bytes.Buffer
	pass := func() { _ = p.hit(t.Context(), Leased, &out, never) }
	require.NotPanics(t, pass)
	require.Panics(t, pass)
	require.Panics(t, pass)
	require.Equal(t, "failpoint leased pass 2: panic\nfailpoint leased pass 3: panic\n", out.String())
}

func TestPassesOfConcurrentCallersAreCountedOnce(t *testing.T) {
	t.Parallel()
	p := mustParse(t, "read:50:error")
	var failed atomic.Int64
	var out bytes.Buffer // written by one of them only
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 10 {
				if p.hit(t.Context(), Read, &out, never) != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, failed.Load())
	require.Equal(t, "failpoint read pass 50: error\n", out.String())
}

func TestSleepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	p := mustParse(t, "persist_tx:1:sleep=24h,persist_tx:2:sleep=1ms")
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.hit(ctx, PersistTx, &out, never), context.Canceled)
	require.NoError(t, p.hit(t.Context(), PersistTx, &out, never))
	require.Equal(t, "failpoint persist_tx pass 1: sleep\nfailpoint persist_tx pass 2: sleep\n", out.String())
}

func TestKillIsAnnouncedFirst(t *testing.T) {
	t.Parallel()
	p := mustParse(t, "acked:1:kill")
	var out bytes.Buffer
	killed := false
	require.NoError(t, p.hit(t.Context(), Acked, &out, func() {
		require.Equal(t, "failpoint acked pass 1: kill\n", out.String())
		killed = true
	}))
	require.True(t, killed)
}

// child is set in the processes the tests below start from their own binary.
const child = "FAILPOINT_TEST_CHILD"

// TestChild is what such a process runs: it passes a point three times and says
// how far it came.
func TestChild(t *testing.T) {
	t.Parallel()
	if os.Getenv(child) == "" {
		require.NoError(t, Check(), "the tests themselves are not armed")
		require.False(t, Armed(LLMDone))
		require.NoError(t, Hit(t.Context(), LLMDone))
		return
	}
	t.Cleanup(func() { _, _ = os.Stderr.WriteString("cleaned up\n") })
	if err := Check(); err != nil {
		_, _ = os.Stderr.WriteString("bad plan\n")
	}
	for range 3 {
		err := Hit(t.Context(), LLMDone)
		if err != nil {
			_, _ = os.Stderr.WriteString("failed\n")
			continue
		}
		_, _ = os.Stderr.WriteString("passed\n")
	}
}

func runChild(t *testing.T, plan string) (stderr string, state *os.ProcessState) {
	t.Helper()
	return failpointtest.Run(t, "TestChild", plan, child+"=1")
}

func TestKillIsASIGKILL(t *testing.T) {
	t.Parallel()
	stderr, state := runChild(t, "llm_done:2:kill")
	require.True(t, failpointtest.Killed(state), "%v", state)
	require.Equal(t, "passed\nfailpoint llm_done pass 2: kill\n", stderr, "nothing runs after the signal, not even a cleanup")
}

func TestErrorFromTheEnvironment(t *testing.T) {
	t.Parallel()
	stderr, state := runChild(t, "llm_done:2+:error, read:1:kill")
	require.True(t, state.Success())
	require.Equal(t, "passed\nfailpoint llm_done pass 2: error\nfailed\nfailpoint llm_done pass 3: error\nfailed\ncleaned up\n", stderr)
}

func TestUnreadablePlanFailsEverywhere(t *testing.T) {
	t.Parallel()
	stderr, _ := runChild(t, "llm_done:2:kil")
	require.Equal(t, "bad plan\nfailed\nfailed\nfailed\ncleaned up\n", stderr)
}
