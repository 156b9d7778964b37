package telemetry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serverBundle is a server on a free port and what it serves.
type serverBundle struct {
	*telemetry.Server
	health *telemetry.Health
	log    *buffer
	client *http.Client
}

func startServer(t *testing.T) *serverBundle {
	t.Helper()
	b := newServer(t, telemetry.HTTPConfig{Addr: "127.0.0.1:0"})
	require.NoError(t, b.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, b.Stop(context.WithoutCancel(t.Context()))) })
	return b
}

func newServer(t *testing.T, cfg telemetry.HTTPConfig) *serverBundle {
	t.Helper()
	log, out := newLogger("json")
	health := telemetry.NewHealth()
	return &serverBundle{
		Server: telemetry.NewServer(cfg, newMetrics(t), health, log),
		health: health, log: out,
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
}

func (b *serverBundle) request(t *testing.T, method, path string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+b.Addr()+path, nil)
	require.NoError(t, err)
	resp, err := b.client.Do(r)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func (b *serverBundle) report(t *testing.T, path string) (int, telemetry.Report) {
	t.Helper()
	code, body := b.request(t, http.MethodGet, path)
	var report telemetry.Report
	require.NoError(t, json.Unmarshal([]byte(body), &report), body)
	return code, report
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	b := startServer(t)
	code, body := b.request(t, http.MethodGet, "/metrics")
	require.Equal(t, 200, code)
	require.Contains(t, body, "go_goroutines")

	for _, path := range []string{"/", "/debug/pprof/", "/metrics/", "/healthz/x", "/debug/vars"} {
		code, _ = b.request(t, http.MethodGet, path)
		require.Equal(t, 404, code, path)
	}
	code, _ = b.request(t, http.MethodPost, "/readyz")
	require.Equal(t, 405, code)
	code, body = b.request(t, http.MethodHead, "/healthz")
	require.Equal(t, 200, code)
	require.Empty(t, body)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	b := startServer(t)
	code, report := b.report(t, "/readyz")
	require.Equal(t, 200, code)
	require.Equal(t, telemetry.Report{Status: "ready"}, report)

	failing := errors.New("refused")
	check := func(context.Context) error { return failing }
	b.health.Register("redis", check)
	b.health.Register("store", func(context.Context) error { return nil })
	b.health.Register("temporal", func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			return errors.New("no deadline")
		}
		return nil
	})
	code, report = b.report(t, "/readyz")
	require.Equal(t, 503, code)
	require.Equal(t, telemetry.Report{
		Status: "not ready",
		Checks: map[string]string{"redis": "refused", "store": "ok", "temporal": "ok"},
	}, report)
	code, report = b.report(t, "/healthz")
	require.Equal(t, 200, code, "a restart would not bring Redis back")
	require.Equal(t, "ok", report.Status)

	b.health.Register("redis", func(context.Context) error { return nil })
	code, _ = b.report(t, "/readyz")
	require.Equal(t, 200, code)

	b.health.Drain()
	code, report = b.report(t, "/readyz")
	require.Equal(t, 503, code)
	require.Equal(t, map[string]string{"process": "stopping"}, report.Checks)
	code, _ = b.report(t, "/healthz")
	require.Equal(t, 200, code)

	b.health.Fail(fmt.Errorf("worker: %w", foreignError(canary)))
	b.health.Fail(errors.New("a later one"))
	for _, path := range []string{"/healthz", "/readyz"} {
		code, report = b.report(t, path)
		require.Equal(t, 503, code)
		require.Equal(t, telemetry.Report{
			Status: "failed", Checks: map[string]string{"process": "worker: [textproto.ProtocolError]"},
		}, report)
	}
}

// A check that hangs is cut by its context, and does not delay the others.
func TestReadinessIsBounded(t *testing.T) {
	t.Parallel()
	h := telemetry.NewHealth()
	h.Register("hangs", func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	report, ready := h.Ready(ctx)
	require.False(t, ready)
	require.Equal(t, "context canceled", report.Checks["hangs"])
}

func TestBusyAddress(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, taken.Close()) })
	addr := taken.Addr().String()

	byDefault := newServer(t, telemetry.HTTPConfig{Addr: addr})
	require.NoError(t, byDefault.Start(t.Context()))
	require.Empty(t, byDefault.Addr())
	records := byDefault.log.records(t)
	require.Len(t, records, 1)
	require.Equal(t, "WARN", records[0]["level"])
	require.Equal(t, addr, records[0]["addr"])
	require.Contains(t, records[0]["error"], "address already in use")
	require.NoError(t, byDefault.Stop(t.Context()))

	explicit := newServer(t, telemetry.HTTPConfig{Addr: addr, Explicit: true})
	err = explicit.Start(t.Context())
	require.ErrorContains(t, err, "HTTP_ADDR")
	require.ErrorContains(t, err, "address already in use")
}

// Stop lets a request finish, and cuts it when the time is up.
func TestStopCutsWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	b := newServer(t, telemetry.HTTPConfig{Addr: "127.0.0.1:0"})
	require.NoError(t, b.Start(t.Context()))
	started, cut := make(chan struct{}), make(chan struct{})
	b.health.Register("hangs", func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		close(cut)
		return ctx.Err()
	})
	done := make(chan error, 1)
	go func() {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.Addr()+"/readyz", nil)
		if err == nil {
			var resp *http.Response
			if resp, err = b.client.Do(r); err == nil {
				err = resp.Body.Close()
			}
		}
		done <- err
	}()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, b.Stop(ctx), context.Canceled)
	require.Error(t, <-done)
	<-cut
}

// A client that opens a connection and says nothing, or far too much, is sent
// away.
func TestHeadersAreLimited(t *testing.T) {
	t.Parallel()
	b := startServer(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.Addr()+"/healthz", nil)
	require.NoError(t, err)
	r.Header.Set("X-Large", strings.Repeat("x", 64<<10))
	resp, err := b.client.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
}

func TestModule(t *testing.T) {
	t.Parallel()
	var (
		server *telemetry.Server
		health *telemetry.Health
	)
	app := fxtest.New(t,
		fx.Supply(
			telemetry.LogConfig{Level: "error"},
			telemetry.HTTPConfig{Addr: "127.0.0.1:0"},
			telemetry.MetricsConfig{Models: []string{"m"}},
		),
		telemetry.Module(),
		fx.Populate(&server, &health),
		fx.Invoke(func(client.MetricsHandler, *telemetry.Metrics) {}),
	)
	require.Empty(t, server.Addr(), "constructors do no I/O")
	app.RequireStart()
	b := &serverBundle{Server: server, health: health, client: &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	}}
	code, _ := b.request(t, http.MethodGet, "/metrics")
	require.Equal(t, 200, code)
	app.RequireStop()
	_, err := new(net.Dialer).DialContext(t.Context(), "tcp", server.Addr())
	require.Error(t, err)
}
