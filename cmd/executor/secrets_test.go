package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/config"
)

// secret is part of every secret of these tests, CANARY of all.
const (
	secret         = "s3cr3t-CANARY"
	codecToken     = secret + "-codec-token"
	encryptionKeys = "2026-b:CANARYCANARYCANARYCANARYCANARYCANARYCANARYA=,2026-a:CANARYCANARYCANARYCANARYCANARYCANARYCANARYE="
)

// secrets are environments that hold a secret in each variable that may have
// one, with servers that do not answer.
func secrets(t *testing.T) []map[string]string {
	t.Helper()
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(path, []byte(content+"\n"), 0o600))
		return path
	}
	nobody := freeAddr(t)
	environs := []map[string]string{
		{
			"REDIS_CONNECTION": nobody + ",user=u,password=" + secret,
			"LLM_ENDPOINT":     "http://user:" + secret + "@" + nobody + "/v1/chat/completions?key=" + secret,
			"LLM_API_KEY":      secret,
			"OPENAI_API_KEY":   secret + "-2",
			"DATABASE_URL":     "postgres://u:" + secret + "@" + nobody + "/x?sslmode=disable",
			"TEMPORAL_API_KEY": secret,
			"ENCRYPTION_KEYS":  encryptionKeys,
			"CODEC_TOKEN":      codecToken,
		},
		{
			"REDIS_URL_FILE":        file("redis://u:" + secret + "@" + nobody),
			"LLM_API_KEY_FILE":      file(secret),
			"DATABASE_URL_FILE":     file("mysql://u:" + secret + "@" + nobody + "/x"),
			"TEMPORAL_API_KEY_FILE": file(secret),
			"ENCRYPTION_KEYS_FILE":  file(encryptionKeys),
			"CODEC_TOKEN_FILE":      file(codecToken),
		},
		{
			"REDIS_CONNECTION_FILE": file(nobody + ",password=" + secret),
			"OPENAI_API_KEY_FILE":   file(secret),
			"DB_HOST":               "127.0.0.1", "DB_PORT": nobody[len("127.0.0.1:"):], "DB_NAME": "n", "DB_USER": "u", "DB_PASSWORD_FILE": file(secret),
			"TEMPORAL_GRPC_META_X_KEY": secret,
		},
		{"DB_HOST": "127.0.0.1", "DB_NAME": "n", "DB_USER": "u", "DB_PASSWORD": secret, "REDIS_URL": "redis://:" + secret + "@" + nobody},
	}
	given := make(map[string]bool)
	for _, env := range environs {
		for name := range env {
			given[name] = true
		}
		if env["REDIS_CONNECTION"]+env["REDIS_URL"]+env["REDIS_URL_FILE"]+env["REDIS_CONNECTION_FILE"] == "" {
			env["REDIS_CONNECTION"] = nobody
		}
		env["TEMPORAL_ADDRESS"], env["TEMPORAL_TLS"] = nobody, "false"
		env["LOG_LEVEL"], env["HTTP_ADDR"] = "debug", freeAddr(t)
	}
	for _, v := range config.Variables() {
		switch {
		case !v.Secret || v.Name == "TEMPORAL_TLS_CLIENT_KEY_DATA": // needs a certificate; internal/config tests it
		case v.File:
			require.True(t, given[v.Name] && given[v.Name+"_FILE"], "no test gives %s and %s_FILE", v.Name, v.Name)
		default:
			require.True(t, given[v.Name], "no test gives %s", v.Name)
		}
	}
	return environs
}

// Fault C08: no command shows a secret, whether it works, refuses its settings
// or fails for want of a server.
func TestNoCommandShowsASecret(t *testing.T) {
	t.Parallel()
	for i, env := range secrets(t) {
		for _, tt := range []struct {
			name string
			args []string
			more map[string]string
			code int
		}{
			{"config", []string{"config"}, nil, exitOK},
			{"config as JSON", []string{"config", "-o", "json"}, nil, exitOK},
			{"help", []string{"run", "--help"}, nil, exitOK},
			{"other settings are wrong", []string{"run"}, map[string]string{"MAX_AGENT": secret, "LOG_LEVEL": secret, "HTTP_ADDR": secret}, exitUsage},
			{"in the wrong variable", []string{"config"}, map[string]string{"TEMPORAL_ADDRESS": secret, "DRAIN_TIMEOUT": secret}, exitUsage},
			{"doctor", []string{"doctor", "--ask"}, nil, exitUnreachable},
			{"doctor for programs", []string{"doctor", "-o", "json"}, nil, exitUnreachable},
			{"doctor of wrong settings", []string{"doctor"}, map[string]string{"MAX_AGENT": secret, "HTTP_ADDR": secret}, exitUsage},
			{"no such command", []string{"frobnicate"}, nil, exitUsage},
			{"no Redis", []string{"submit", "--role", "agent", "--task", "t"}, nil, exitUnreachable},
			{"no executor", []string{"healthcheck"}, map[string]string{"HTTP_ADDR": freeAddr(t)}, exitUnreachable},
		} {
			t.Run(tt.name+" "+string(rune('1'+i)), func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var out bytes.Buffer
				cmd := executor(ctx, t, env, tt.more, tt.args...)
				cmd.Stdout, cmd.Stderr = &out, &out
				_ = cmd.Run()
				require.Equal(t, tt.code, cmd.ProcessState.ExitCode(), out.String())
				require.NotEmpty(t, out.String())
				require.NotContains(t, out.String(), "CANARY")
			})
		}
		t.Run("a service without its servers "+string(rune('1'+i)), func(t *testing.T) {
			t.Parallel()
			p := serveWithoutServers(t, env)
			require.NotContains(t, p.get(t, "/readyz"), "CANARY")
			require.NotContains(t, p.get(t, "/metrics"), "CANARY")
			require.Eventually(t, func() bool { return bytes.Contains(p.output(), []byte("connection refused")) }, time.Minute, 20*time.Millisecond,
				"the log says what is missing")
			p.stop(t)
			require.NotContains(t, string(p.output()), "CANARY")
		})
	}
}

// A flag is seen by every user of the machine, in ps and in /proc.
func TestNoFlagTakesASecret(t *testing.T) {
	t.Parallel()
	secretive := regexp.MustCompile(`key|passw|secret|token$|credential|url|dsn|redis|database`) // --max-tokens is a number
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		check := func(f *pflag.Flag) { require.NotRegexp(t, secretive, f.Name, cmd.CommandPath()) }
		cmd.Flags().VisitAll(check)
		cmd.PersistentFlags().VisitAll(check)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}

// executor is a command that runs this test binary as the executor (TestMain),
// with nothing of the developer's own settings.
func executor(ctx context.Context, t *testing.T, env, more map[string]string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, "executor", args...)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"HOME=" + cmd.Dir, "PATH=" + os.Getenv("PATH"), "TEMPORAL_CONFIG_FILE=" + os.DevNull}
	for _, m := range []map[string]string{env, more} {
		for name, value := range m {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

// service is `executor run` as a process.
type service struct {
	cmd  *exec.Cmd
	addr string

	mu  sync.Mutex
	out bytes.Buffer
}

func (s *service) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *service) output() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.out.Bytes())
}

// serveWithoutServers starts a service that finds none of its servers, and waits
// until it serves /healthz.
func serveWithoutServers(t *testing.T, env map[string]string) *service {
	t.Helper()
	s := &service{addr: env["HTTP_ADDR"]}
	// Stopped with a signal, as in production.
	s.cmd = executor(context.WithoutCancel(t.Context()), t, env, map[string]string{"DRAIN_TIMEOUT": "1s"}, "run")
	s.cmd.Stdout, s.cmd.Stderr = s, s
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
	})
	require.Eventually(t, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/healthz", nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, time.Minute, 20*time.Millisecond, "%s", s.output())
	return s
}

func (s *service) get(t *testing.T, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+path, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return string(body)
}

func (s *service) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.cmd.Wait(), "%s", s.output())
}
