package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/doctor"
	"github.com/nodpt/executor/internal/term"
)

func TestDoctorReport(t *testing.T) {
	t.Parallel()
	results := []doctor.Result{
		{
			Check: "configuration", State: doctor.OK, Found: "2 settings are not defaults",
			Settings: []doctor.Setting{{Name: "MAX_AGENT", Value: "2"}, {Name: "CERT", Value: strings.Repeat("é", 200)}},
		},
		{Check: "redis.groups", State: doctor.OK, Found: "all there", Fixed: "created one"},
		{Check: "redis.bridges", State: doctor.Problem, Found: "none\nat all", Cause: "nobody reads", Fix: []string{"executor run", "or executor bridge"}},
		{Check: "temporal.workers", State: doctor.Skipped, Cause: "x comes first"},
		{Check: "temporal.backlog", State: doctor.Skipped, Cause: "x comes first"},
		{Check: "llm.models", State: doctor.Skipped, Cause: "y comes first"},
		{Check: "process.ready", State: doctor.Warning, Found: "odd", Cause: "why"},
	}
	var out bytes.Buffer
	require.NoError(t, printReport(term.New(&out, term.Table, ""), results))
	require.Equal(t, `configuration        ok       2 settings are not defaults
                     set      MAX_AGENT=2
                     set      CERT=`+strings.Repeat("é", wideSetting-1)+`…
redis.groups         ok       all there
                     fixed    created one
redis.bridges        problem  none at all
                     cause    nobody reads
                     fix      executor run
                     fix      or executor bridge
temporal.workers     skipped  x comes first (and 1 more)
llm.models           skipped  y comes first
process.ready        warning  odd
                     cause    why
`, out.String())

	out.Reset()
	require.NoError(t, printReport(term.New(&out, term.JSONL, ""), results[2:4]))
	lines := `{"check":"redis.bridges","state":"problem","found":"none\nat all","cause":"nobody reads","fix":["executor run","or executor bridge"]}
{"check":"temporal.workers","state":"skipped","cause":"x comes first"}
`
	require.Equal(t, lines, out.String())
}

// The doctor names the variable that is in force.
func TestDoctorVariables(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte("redis://localhost"), 0o600))
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("k"), 0o600))
	url := doctor.Variables{
		Redis: "REDIS_CONNECTION", LLMKey: "LLM_API_KEY",
		DatabaseHost: "DATABASE_URL", DatabaseLogin: "DATABASE_URL", DatabaseName: "DATABASE_URL",
	}
	tests := map[string]struct {
		environ map[string]string
		change  func(*doctor.Variables)
	}{
		"nothing is set":   {nil, func(*doctor.Variables) {}},
		"another variable": {map[string]string{"REDIS_URL": "localhost", "OPENAI_API_KEY": "k"}, func(v *doctor.Variables) { v.Redis, v.LLMKey = "REDIS_URL", "OPENAI_API_KEY" }},
		"files": {map[string]string{"REDIS_URL_FILE": file, "LLM_API_KEY_FILE": key}, func(v *doctor.Variables) {
			v.Redis, v.LLMKey = "REDIS_URL_FILE", "LLM_API_KEY_FILE"
		}},
		"parts of a database": {map[string]string{"DB_HOST": "localhost", "DB_NAME": "n", "DB_USER": "u", "DB_PASSWORD_FILE": key}, func(v *doctor.Variables) {
			v.DatabaseHost, v.DatabaseLogin, v.DatabaseName = "DB_HOST and DB_PORT", "DB_USER and DB_PASSWORD_FILE", "DB_NAME"
		}},
		"a URL beside parts": {map[string]string{"DB_HOST": "localhost", "DATABASE_URL": "sqlite://x.db"}, func(*doctor.Variables) {}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			examined, err := examine(config.Load(tt.environ))
			require.NoError(t, err)
			want := url
			tt.change(&want)
			require.Equal(t, want, examined.Variables)
			require.Len(t, examined.Settings, len(tt.environ))
		})
	}
}

func TestDoctorModels(t *testing.T) {
	t.Parallel()
	examined, err := examine(config.Load(map[string]string{
		"MODEL_MANAGER": "big", "MODEL_INSPECTOR": "big", "MODEL_CHAT": "small", "CHAT_MODELS": "small,other",
	}))
	require.NoError(t, err)
	require.Equal(t, []doctor.Model{
		{Name: "big", Variables: []string{"MODEL_MANAGER", "MODEL_INSPECTOR"}},
		{Name: "trt-llm-agent", Variables: []string{"MODEL_AGENT", "DEFAULT_MODEL"}},
		{Name: "small", Variables: []string{"MODEL_CHAT", "CHAT_MODELS"}},
		{Name: "other", Variables: []string{"CHAT_MODELS"}, Optional: true},
	}, examined.Models)
}

func TestDoctorMistakes(t *testing.T) {
	t.Parallel()
	examined, err := examine(config.Load(map[string]string{"MAX_AGENT": "many", "LLM_TIMEOUT": "soon"}))
	require.NoError(t, err)
	require.Len(t, examined.Mistakes, 2)
	require.Equal(t, exitUsage, doctor.ExitCode(doctor.Run(t.Context(), examined)))
}

func TestDoctorUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-o", "yaml"}, {"--timeout", "0s"}, {"--timeout", "soon"}, {"x"}} {
		var out bytes.Buffer
		require.Equal(t, exitUsage, execute(t.Context(), append([]string{"doctor"}, args...), &out, &out), args)
	}
}

func TestDoctorInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// A server that takes connections and says nothing.
	var lc net.ListenConfig
	silent, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	cmd := executor(ctx, t, map[string]string{
		"REDIS_CONNECTION": silent.Addr().String(), "TEMPORAL_ADDRESS": silent.Addr().String(), "HTTP_ADDR": freeAddr(t),
	}, nil, "doctor", "--timeout", "1m")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	conn, err := silent.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait()
	require.Equal(t, exitFailed, cmd.ProcessState.ExitCode(), out.String())
	require.Equal(t, "executor: interrupted\n", out.String())
}
