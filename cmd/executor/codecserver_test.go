package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/telemetry"
)

// codecSettings are the settings of a codec server that can start.
func codecSettings(addr string) map[string]string {
	return map[string]string{
		"ENCRYPTION_KEYS": encryptionKeys, "CODEC_TOKEN": codecToken, "CODEC_ADDR": addr,
		"TEMPORAL_UI_URL": "http://localhost:8233/ui", "LOG_LEVEL": "debug",
	}
}

// TestServeCodec goes the way of a payload: encrypted by a client of the
// executor, decrypted over HTTP with the token in the path, as the Web UI does.
func TestServeCodec(t *testing.T) {
	t.Parallel()
	cfg, err := config.Load(codecSettings("127.0.0.1:0"))
	require.NoError(t, err)
	options, err := app.TemporalOptions(cfg, telemetry.NewLogger(io.Discard, cfg.Log()), nil)
	require.NoError(t, err)
	sealed, err := options.DataConverter.ToPayload("CANARY of a job")
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := &service{} // a service collects output
	listening := make(chan net.Addr, 1)
	ended := make(chan error, 1)
	go func() { ended <- serveCodec(ctx, cfg, log, func(a net.Addr) { listening <- a }) }()
	addr := (<-listening).String()

	remote := func(token string) converter.PayloadCodec {
		return converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{Endpoint: "http://" + addr + "/" + token})
	}
	opened, err := remote(codecToken).Decode([]*commonpb.Payload{sealed})
	require.NoError(t, err)
	require.Equal(t, `"CANARY of a job"`, string(opened[0].GetData()))
	_, err = remote(codecToken[1:]).Decode([]*commonpb.Payload{sealed})
	require.Error(t, err)

	// A second one cannot listen there.
	busy, err := config.Load(codecSettings(addr))
	require.NoError(t, err)
	var exit *exitError
	require.ErrorAs(t, serveCodec(ctx, busy, io.Discard, func(net.Addr) {}), &exit)
	require.Equal(t, exitUsage, exit.code)
	require.ErrorContains(t, exit, "CODEC_ADDR")

	cancel()
	require.NoError(t, <-ended)
	text := string(log.output())
	require.Contains(t, text, "http://localhost:8233", "the origin it answers to is the first thing to look at")
	require.Contains(t, text, `"reason":"token"`)
	require.NotContains(t, text, "CANARY")
}

func TestCodecServerSettings(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		without []string
		with    map[string]string
		want    []string
	}{
		"nothing set":      {[]string{"ENCRYPTION_KEYS", "CODEC_TOKEN"}, nil, []string{"ENCRYPTION_KEYS", "CODEC_TOKEN"}},
		"no keys":          {[]string{"ENCRYPTION_KEYS"}, nil, []string{"ENCRYPTION_KEYS"}},
		"no token":         {[]string{"CODEC_TOKEN"}, nil, []string{"CODEC_TOKEN"}},
		"short token":      {nil, map[string]string{"CODEC_TOKEN": "CANARY"}, []string{"CODEC_TOKEN"}},
		"every origin":     {nil, map[string]string{"CODEC_ORIGIN": "*"}, []string{"CODEC_ORIGIN"}},
		"keys and address": {nil, map[string]string{"ENCRYPTION_KEYS": "a:CANARY", "CODEC_ADDR": "8234"}, []string{"ENCRYPTION_KEYS", "CODEC_ADDR"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := codecSettings("127.0.0.1:0")
			for _, variable := range tt.without {
				delete(env, variable)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out bytes.Buffer
			cmd := executor(ctx, t, env, tt.with, "codec-server")
			cmd.Stdout, cmd.Stderr = &out, &out
			_ = cmd.Run()
			require.Equal(t, exitUsage, cmd.ProcessState.ExitCode(), out.String())
			for _, variable := range tt.want {
				require.Contains(t, out.String(), variable)
			}
			require.NotContains(t, out.String(), "CANARY")
		})
	}
}

// TestCodecServerProcess starts the command and stops it as an orchestrator does.
func TestCodecServerProcess(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := &service{addr: addr}
	s.cmd = executor(context.WithoutCancel(t.Context()), t, codecSettings(addr), nil, "codec-server")
	s.cmd.Stdout, s.cmd.Stderr = s, s
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
	})
	require.Eventually(t, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/healthz", nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, time.Minute, 20*time.Millisecond, "%s", s.output())

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/"+codecToken+"/decode", strings.NewReader(`{}`))
	require.NoError(t, err)
	req.Header.Set("Origin", "http://evil.example")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusForbidden, resp.StatusCode)

	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.cmd.Wait(), "%s", s.output())
	require.Contains(t, string(s.output()), "http://evil.example")
	require.NotContains(t, string(s.output()), "CANARY")
}
