package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm/llmtest"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/stream"
)

// TestMain lets the scripts run this test binary as `executor`.
func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"executor": main})
}

// leakChecked fails the tests if goroutines outlive them.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestScripts runs the command lines in testdata/script. Each script has a Redis
// of its own in REDIS_CONNECTION and no other setting.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("REDIS_CONNECTION", redistest.Start(t).Addr())
			env.Setenv("FREE_ADDR", freeAddr(t))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
			"answer": func(ts *testscript.TestScript, neg bool, args []string) {
				answer(t.Context(), ts, neg, args)
			},
		},
	})
}

// exits CODE COMMAND… runs a command and checks its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// answer ROLE TYPE PAYLOAD stands for the executor: it waits in the background
// for one job of the role and publishes an update for it.
func answer(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: answer ROLE TYPE PAYLOAD")
	}
	role := job.Role(args[0])
	c, err := stream.Open(stream.Config{Connection: ts.Getenv("REDIS_CONNECTION")}, slog.New(slog.DiscardHandler))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for {
				entries, err := c.TailUpdates(ctx, role.Stream(), "0", time.Second)
				switch {
				case err != nil:
					return err
				case len(entries) == 0:
					continue
				}
				decoded, err := job.Decode(role, entries[0])
				if err != nil {
					return err
				}
				_, err = c.Publish(ctx, stream.Update{
					Effect: "test:" + args[0], Stream: stream.Updates, Type: args[1], Payload: args[2], Job: decoded.Job, At: time.Now(),
				})
				return err
			}
		}()
	}()
	ts.Defer(func() { //nolint:contextcheck // closing takes no context
		cancel()
		if err := errors.Join(<-done, c.Close()); err != nil {
			ts.Logf("answer: %v", err)
		}
	})
}

func freeAddr(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	return addr
}

func TestCheckHealth(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status int
		code   int
	}{
		"ready":     {http.StatusOK, exitOK},
		"not ready": {http.StatusServiceUnavailable, exitFailed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(`{"status":"x"}`))
			}))
			t.Cleanup(server.Close)
			var out strings.Builder
			err := checkHealth(t.Context(), server.URL, &out)
			require.JSONEq(t, `{"status":"x"}`, out.String())
			if tt.code == exitOK {
				require.NoError(t, err)
				return
			}
			var exit *exitError
			require.ErrorAs(t, err, &exit)
			require.Equal(t, tt.code, exit.code)
		})
	}
}

func TestLocalAddr(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"0.0.0.0:9090":   "127.0.0.1:9090",
		":9090":          "127.0.0.1:9090",
		"[::]:9090":      "127.0.0.1:9090",
		"10.1.2.3:9090":  "10.1.2.3:9090",
		"localhost:9090": "localhost:9090",
	} {
		require.Equal(t, want, localAddr(addr))
	}
}

func TestServeMock(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	listening := make(chan net.Addr, 1)
	ended := make(chan error, 1)
	go func() { ended <- serveMock(ctx, "127.0.0.1:0", llmtest.Options{}, func(a net.Addr) { listening <- a }) }()
	addr := <-listening
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr.String()+"/v1/chat/completions",
		strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"!echo pong"}]}`))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)

	var exit *exitError
	require.ErrorAs(t, serveMock(ctx, addr.String(), llmtest.Options{}, func(net.Addr) {}), &exit)
	require.Contains(t, exit.Error(), "--addr")
	cancel()
	require.NoError(t, <-ended)
}
