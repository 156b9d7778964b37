package config_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/telemetry"
	"github.com/nodpt/executor/worker"
)

// canary stands for a secret, or for a value in the wrong variable.
const canary = "CANARY-4f1d"

// environ is the environment of one test.
type environ = map[string]string

func load(t *testing.T, env environ) config.Config {
	t.Helper()
	c, err := config.Load(env)
	require.NoError(t, err)
	return c
}

// mistakes loads an environment that must be refused, and returns what was said
// by variable.
func mistakes(t *testing.T, env environ) map[string]string {
	t.Helper()
	_, err := config.Load(env)
	var errs *config.Errors
	require.ErrorAs(t, err, &errs)
	byName := make(map[string]string)
	for _, m := range errs.Mistakes {
		require.NotContains(t, byName, m.Variable, "two mistakes of one variable: %v", err)
		byName[m.Variable] = m.Problem
		require.Contains(t, err.Error(), m.Variable+": "+m.Problem)
	}
	return byName
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]environ{
		"nothing set": nil,
		"all empty":   {"MAX_AGENT": "", "LLM_TIMEOUT": " ", "REDIS_CONNECTION": "", "HTTP_ADDR": "", "LLM_API_KEY_FILE": "", "STOP_GRACE": ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := load(t, env)

			redis := c.Stream()
			require.NotEmpty(t, redis.Consumer)
			redis.Consumer = ""
			require.Equal(t, stream.Config{Connection: "localhost:6379", Group: "executor-group"}, redis)
			require.Equal(t, llm.Config{Endpoint: "http://localhost:11434/v1/chat/completions", Timeout: 5 * time.Minute}, c.LLM())
			require.Equal(t, store.Config{URL: "sqlite://executor.db"}, c.Store())
			require.Equal(t, bridge.Config{
				MaxInFlight: 1000, ClaimMinIdle: time.Minute, ChatList: "chat.jobs", Updates: "signalr:updates",
			}, c.Bridge())
			require.Equal(t, worker.Config{
				Slots:     map[job.Role]int{job.Manager: 0, job.Inspector: 0, job.Agent: 0, job.Chat: 0},
				Unlimited: 1000, DrainTimeout: time.Minute,
			}, c.Worker())
			require.Equal(t, activities.Config{
				Models: map[job.Role]string{
					job.Manager: "trt-llm-manager", job.Inspector: "trt-llm-inspector", job.Agent: "trt-llm-agent", job.Chat: "",
				},
				DefaultModel: "trt-llm-agent",
				ChatModels:   []string{"*"},
				MaxTokens:    map[job.Role]int{job.Manager: 256, job.Inspector: 512, job.Agent: 128, job.Chat: 64},
				LLMTimeout:   5 * time.Minute,
				DrainTimeout: time.Minute,
				RetryFor:     24 * time.Hour,
			}, c.Roles())
			require.Equal(t, telemetry.LogConfig{Level: "info", Format: "json"}, c.Log())
			require.Equal(t, telemetry.HTTPConfig{Addr: "127.0.0.1:9090"}, c.HTTP())
			require.Equal(t, []string{"trt-llm-agent", "trt-llm-inspector", "trt-llm-manager"}, c.Metrics().Models)
			require.Equal(t, 80*time.Second, c.StopTimeout())
			require.Equal(t, "http://127.0.0.1:8233", c.TemporalUIURL)
		})
	}
}

func TestEverySettingReachesItsPackage(t *testing.T) {
	t.Parallel()
	ca := filepath.Join(writeCertificate(t), "cert.pem")
	c := load(t, environ{
		"REDIS_CONNECTION": "ignored:1", "REDIS_URL": "rediss://redis.internal:6390/2", "REDIS_CA_FILE": ca,
		"CONSUMER_GROUP": "g", "CONSUMER_NAME": "me", "CLAIM_MIN_IDLE": "90s", "BRIDGE_MAX_IN_FLIGHT": "50", "CHAT_LIST": "other.list",
		"MAX_MANAGER": "5", "MAX_INSPECTOR": "10", "MAX_AGENT": "20", "MAX_CHAT": "30", "MAX_TOTAL": "40",
		"LLM_ENDPOINT": "https://llm.example.com/v1/chat/completions", "OPENAI_API_KEY": "key", "LLM_TIMEOUT": "2m",
		"MODEL_MANAGER": "m1", "MODEL_INSPECTOR": "m2", "MODEL_AGENT": "m3", "MODEL_CHAT": "m4", "DEFAULT_MODEL": "m5",
		"CHAT_MODELS": " a, ,b ", "MAX_TOKENS_MANAGER": "1", "MAX_TOKENS_INSPECTOR": "2", "MAX_TOKENS_AGENT": "3", "MAX_TOKENS_CHAT": "4",
		"DATABASE_URL": "postgres://u:p@db/executor", "RETRY_FOR": "1h", "DRAIN_TIMEOUT": "0s", "STOP_GRACE": "21s",
		"HTTP_ADDR": "127.0.0.1:9090", "TEMPORAL_UI_URL": "https://ui.internal/temporal/", "LOG_LEVEL": "DEBUG", "LOG_FORMAT": "Text",
	})
	require.Equal(t, stream.Config{Connection: "rediss://redis.internal:6390/2", CAFile: ca, Group: "g", Consumer: "me"}, c.Stream())
	require.Equal(t, llm.Config{Endpoint: "https://llm.example.com/v1/chat/completions", APIKey: "key", Timeout: 2 * time.Minute}, c.LLM())
	require.Equal(t, store.Config{URL: "postgres://u:p@db/executor"}, c.Store())
	require.Equal(t, bridge.Config{MaxInFlight: 50, ClaimMinIdle: 90 * time.Second, ChatList: "other.list", Updates: "signalr:updates"}, c.Bridge())
	require.Equal(t, worker.Config{
		Slots:     map[job.Role]int{job.Manager: 5, job.Inspector: 10, job.Agent: 20, job.Chat: 30},
		Unlimited: 50, Total: 40,
	}, c.Worker())
	require.Equal(t, activities.Config{
		Models:       map[job.Role]string{job.Manager: "m1", job.Inspector: "m2", job.Agent: "m3", job.Chat: "m4"},
		DefaultModel: "m5", ChatModels: []string{"a", "b"},
		MaxTokens:  map[job.Role]int{job.Manager: 1, job.Inspector: 2, job.Agent: 3, job.Chat: 4},
		LLMTimeout: 2 * time.Minute, RetryFor: time.Hour,
	}, c.Roles())
	require.Equal(t, telemetry.LogConfig{Level: "debug", Format: "text"}, c.Log())
	require.Equal(t, telemetry.HTTPConfig{Addr: "127.0.0.1:9090", Explicit: true}, c.HTTP())
	require.Equal(t, []string{"a", "b", "m1", "m2", "m3", "m4", "m5"}, c.Metrics().Models)
	require.Equal(t, 20*time.Second, c.StopTimeout())
	require.Equal(t, "https://ui.internal/temporal", c.TemporalUIURL)
}

func TestAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	found := mistakes(t, environ{
		"MAX_AGENT": "five", "MAX_TOTAL": "-1", "LLM_TIMEOUT": "300", "LOG_LEVEL": "loud", "HTTP_ADDR": "9090",
		"REDIS_CONNECTION": "ftp://redis", "DATABASE_URL": "oracle://db", "LLM_ENDPOINT": "localhost:11434", "STOP_GRACE": "soon",
		"TEMPORAL_ADDRESS": "temporal", "TEMPORAL_TLS": "yes", "LLM_API_KEY_FILE": "/does/not/exist", "ALLOW_INSECURE": "perhaps",
	})
	require.Len(t, found, 13, "%v", found)
	require.Equal(t, "must be a whole number", found["MAX_AGENT"])
	require.Equal(t, "must be a whole number from 0 to 100000", found["MAX_TOTAL"])
	require.Equal(t, "must be a duration such as 30s, 5m or 24h", found["LLM_TIMEOUT"])
	require.Equal(t, "must be one of debug, info, warn, error", found["LOG_LEVEL"])
	require.Equal(t, "cannot read the file: no such file or directory", found["LLM_API_KEY_FILE"])
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		env  environ
		want map[string]string // variable → part of the problem
	}{
		{"int beyond its range", environ{"BRIDGE_MAX_IN_FLIGHT": "0"}, map[string]string{"BRIDGE_MAX_IN_FLIGHT": "from 1 to"}},
		{"int too large to be one", environ{"MAX_CHAT": "99999999999999999999"}, map[string]string{"MAX_CHAT": "whole number"}},
		{"no tokens", environ{"MAX_TOKENS_CHAT": "0"}, map[string]string{"MAX_TOKENS_CHAT": "from 1 to"}},
		{"port", environ{"DB_HOST": "db", "DB_NAME": "n", "DB_USER": "u", "DB_PORT": "70000"}, map[string]string{"DB_PORT": "65535"}},
		{"timeout longer than an attempt", environ{"LLM_TIMEOUT": "25h"}, map[string]string{"LLM_TIMEOUT": "from 1s to 24h"}},
		{"negative duration", environ{"DRAIN_TIMEOUT": "-1s"}, map[string]string{"DRAIN_TIMEOUT": "from 0s to 24h"}},
		{"grace as short as the stop", environ{"STOP_GRACE": "80s"}, map[string]string{"STOP_GRACE": "longer than DRAIN_TIMEOUT + 20s = 1m20s"}},
		{"grace of a bad drain is not judged", environ{"STOP_GRACE": "1s", "DRAIN_TIMEOUT": "x"}, map[string]string{"DRAIN_TIMEOUT": "duration"}},
		{"control characters in a name", environ{"CONSUMER_NAME": "a\nb", "MODEL_CHAT": "x\x1b"}, map[string]string{"CONSUMER_NAME": "printable", "MODEL_CHAT": "printable"}},
		{"format", environ{"LOG_FORMAT": "xml"}, map[string]string{"LOG_FORMAT": "json, text"}},
		{"listen without a port", environ{"HTTP_ADDR": "127.0.0.1"}, map[string]string{"HTTP_ADDR": "host:port"}},
		{"UI", environ{"TEMPORAL_UI_URL": "localhost:8233"}, map[string]string{"TEMPORAL_UI_URL": "http://"}},
		{"redis url in force", environ{"REDIS_URL": "http://redis"}, map[string]string{"REDIS_URL": "redis://"}},
		{"redis CA unreadable", environ{"REDIS_CA_FILE": "/does/not/exist"}, map[string]string{"REDIS_CA_FILE": "no such file"}},
		{"metadata service as LLM", environ{"LLM_ENDPOINT": "http://169.254.169.254/"}, map[string]string{"LLM_ENDPOINT": "metadata"}},
		{"database scheme", environ{"DATABASE_URL": "executor.db"}, map[string]string{"DATABASE_URL": "sqlite://"}},
		{"database without a file", environ{"DATABASE_URL": "sqlite://"}, map[string]string{"DATABASE_URL": "a file is needed"}},
		{"database without a host", environ{"DATABASE_URL": "mysql:///x"}, map[string]string{"DATABASE_URL": "host and database"}},
		{"database with an unknown parameter", environ{"DATABASE_URL": "mysql://u:p@h/db?foo=1"}, map[string]string{"DATABASE_URL": "foo"}},
		{"half a database", environ{"DB_PASSWORD": canary}, map[string]string{"DB_HOST": "must be set", "DB_NAME": "must be set", "DB_USER": "must be set"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			found := mistakes(t, tt.env)
			require.Len(t, found, len(tt.want), "%v", found)
			for variable, part := range tt.want {
				require.Contains(t, found[variable], part)
			}
		})
	}
}

// A value may be in the wrong variable, so no report repeats any.
func TestMistakesNeverRepeatAValue(t *testing.T) {
	t.Parallel()
	free := map[string]bool{ // anything goes
		"CHAT_LIST": true, "CHAT_MODELS": true, "MODEL_MANAGER": true, "MODEL_INSPECTOR": true, "MODEL_AGENT": true, "MODEL_CHAT": true,
		"DEFAULT_MODEL": true, "CONSUMER_GROUP": true, "CONSUMER_NAME": true, "LLM_API_KEY": true, "OPENAI_API_KEY": true,
		"REDIS_CONNECTION": true, "TEMPORAL_NAMESPACE": true, "TEMPORAL_API_KEY": true, "TEMPORAL_TLS_SERVER_NAME": true,
		"TEMPORAL_CLIENT_AUTHORITY": true,
	}
	for _, v := range config.Variables() {
		if free[v.Name] {
			continue
		}
		names := []string{v.Name}
		if v.File {
			names = append(names, v.Name+"_FILE")
		}
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				_, err := config.Load(environ{name: "://" + canary + "\n:" + canary})
				require.Error(t, err)
				require.NotContains(t, err.Error(), canary)
			})
		}
	}
	_, err := config.Load(environ{"REDIS_CONNECTION": "redis://user:" + canary + "%@host"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), canary)
}

func TestSecretsFromFiles(t *testing.T) {
	t.Parallel()
	t.Run("line break at the end", func(t *testing.T) {
		t.Parallel()
		c := load(t, environ{
			"LLM_API_KEY_FILE":  write(t, " k e y \r\n"),
			"REDIS_URL_FILE":    write(t, "redis://:secret@127.0.0.1:6379\n"),
			"DATABASE_URL_FILE": write(t, "mysql://u:p@db/x\n\n"),
		})
		require.Equal(t, " k e y ", c.LLM().APIKey)
		require.Equal(t, "redis://:secret@127.0.0.1:6379", c.Stream().Connection)
		require.Equal(t, "mysql://u:p@db/x", c.Store().URL)
	})
	t.Run("every secret", func(t *testing.T) {
		t.Parallel()
		var names []string
		for _, v := range config.Variables() {
			if v.File {
				names = append(names, v.Name)
			}
		}
		require.ElementsMatch(t, []string{
			"REDIS_CONNECTION", "REDIS_URL", "LLM_API_KEY", "OPENAI_API_KEY", "DATABASE_URL", "DB_PASSWORD", "TEMPORAL_API_KEY",
			"ENCRYPTION_KEYS", "CODEC_TOKEN",
		}, names)
	})
	for _, tt := range []struct{ name, path, want string }{
		{"missing", "/does/not/exist", "no such file"},
		{"a directory", t.TempDir(), "must name a file"},
		{"empty", write(t, "\n"), "empty"},
		{"huge", write(t, strings.Repeat("x", 1<<17)), "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, mistakes(t, environ{"DB_PASSWORD_FILE": tt.path})["DB_PASSWORD_FILE"], tt.want)
		})
	}
	t.Run("both", func(t *testing.T) {
		t.Parallel()
		found := mistakes(t, environ{"LLM_API_KEY": "a", "LLM_API_KEY_FILE": write(t, "b")})
		require.Equal(t, map[string]string{"LLM_API_KEY_FILE": "set either this or LLM_API_KEY, not both"}, found)
	})
}

func TestChatListCanBeSwitchedOff(t *testing.T) {
	t.Parallel()
	require.Empty(t, load(t, environ{"CHAT_LIST": ""}).Bridge().ChatList)
	require.Equal(t, "chat.jobs", load(t, environ{}).Bridge().ChatList)
}

func TestLLMKeyPrecedence(t *testing.T) {
	t.Parallel()
	c := load(t, environ{"LLM_API_KEY": "first", "OPENAI_API_KEY": "second"})
	require.Equal(t, "first", c.LLM().APIKey)
	require.Contains(t, strings.Join(c.Warnings(), "\n"), "OPENAI_API_KEY is set to something else")
}

func TestDatabaseFromParts(t *testing.T) {
	t.Parallel()
	c := load(t, environ{"DB_HOST": "db", "DB_NAME": "nodpt", "DB_USER": "u@x", "DB_PASSWORD": "p/w:@%"})
	require.Equal(t, "mysql://u%40x:p%2Fw%3A%40%25@db:3306/nodpt", c.Store().URL)

	c = load(t, environ{"DB_HOST": "::1", "DB_PORT": "3307", "DB_NAME": "n", "DB_USER": "u"})
	require.Equal(t, "mysql://u@[::1]:3307/n", c.Store().URL)

	c = load(t, environ{"DB_HOST": "db", "DATABASE_URL": "sqlite://x.db"})
	require.Equal(t, "sqlite://x.db", c.Store().URL)
	require.Contains(t, strings.Join(c.Warnings(), "\n"), "the DB_ variables are ignored")
}

func TestConsumerNamesDiffer(t *testing.T) {
	t.Parallel()
	a, b := load(t, nil).Stream().Consumer, load(t, nil).Stream().Consumer
	require.NotEqual(t, a, b)
	require.Contains(t, a, fmt.Sprintf("-%d-", os.Getpid()))
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	limited := func(env environ) environ {
		env["MAX_TOTAL"] = "1"
		return env
	}
	for _, tt := range []struct {
		name string
		env  environ
		want []string // a part of each warning, in order
	}{
		{"quiet", limited(environ{}), nil},
		{"all unlimited", environ{}, []string{"MAX_MANAGER, MAX_INSPECTOR, MAX_AGENT, MAX_CHAT = 0 means unlimited: up to 1000"}},
		{"one unlimited", environ{"MAX_MANAGER": "1", "MAX_INSPECTOR": "1", "MAX_CHAT": "1"}, []string{"MAX_AGENT = 0 means unlimited"}},
		{"redis without TLS", limited(environ{"REDIS_CONNECTION": "redis:6379"}), []string{"REDIS_CONNECTION is reached without TLS"}},
		{"redis settings", limited(environ{"REDIS_CONNECTION": "localhost:6379,what=ever"}), []string{"REDIS_CONNECTION: unknown settings"}},
		{"CA without TLS", limited(environ{"REDIS_CA_FILE": filepath.Join(writeCertificate(t), "cert.pem")}), []string{"REDIS_CA_FILE has no effect"}},
		{"key in clear text", limited(environ{"LLM_ENDPOINT": "http://10.0.0.5/v1/chat/completions", "LLM_API_KEY": "k"}), []string{"API key cross the network in clear text"}},
		{"Ollama's own path", limited(environ{"LLM_ENDPOINT": "http://localhost:11434/api/chat"}), []string{"LLM_ENDPOINT ends in Ollama's own"}},
		{"temporal without TLS", limited(environ{"TEMPORAL_ADDRESS": "temporal:7233"}), []string{"TEMPORAL_ADDRESS is reached without TLS"}},
		{"temporal unverified", limited(environ{"TEMPORAL_ADDRESS": "temporal:7233", "TEMPORAL_TLS_DISABLE_HOST_VERIFICATION": "true"}), []string{"DISABLE_HOST_VERIFICATION"}},
		{"no second attempt", limited(environ{"RETRY_FOR": "1m"}), []string{"RETRY_FOR is shorter than LLM_TIMEOUT"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			warnings := load(t, tt.env).Warnings()
			require.Len(t, warnings, len(tt.want), "%q", warnings)
			for i, part := range tt.want {
				require.Contains(t, warnings[i], part)
			}
		})
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	t.Parallel()
	env := environ{
		"REDIS_CONNECTION":             "redis:6379,password=" + canary + ",ssl=true",
		"REDIS_URL":                    "rediss://user:" + canary + "@redis:6379/0",
		"LLM_ENDPOINT":                 "https://user:" + canary + "@llm.example.com/v1/chat/completions?key=" + canary,
		"LLM_API_KEY":                  canary,
		"OPENAI_API_KEY":               canary + "2",
		"DATABASE_URL":                 "postgres://u:" + canary + "@db/x?sslpassword=" + canary,
		"DB_PASSWORD":                  canary,
		"TEMPORAL_API_KEY_FILE":        write(t, canary+"\n"),
		"TEMPORAL_ADDRESS":             "temporal.example.com:7233",
		"TEMPORAL_GRPC_META_X_API_KEY": canary,
		"ENCRYPTION_KEYS":              "2026-b:CANARY4f1d" + strings.Repeat("A", 33) + "=,a:CANARY4f1d" + strings.Repeat("B", 32) + "A=",
		"CODEC_TOKEN":                  canary + "-codec-token",
	}
	c := load(t, env)
	asJSON, err := json.Marshal(c)
	require.NoError(t, err)
	settings, err := json.Marshal(c.Redacted())
	require.NoError(t, err)
	type holder struct{ C config.Config }
	for _, text := range []string{
		string(asJSON), string(settings), strings.Join(c.Warnings(), "\n"), c.LogValue().String(),
		fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%s", c), fmt.Sprintf("%+v", &c),
		fmt.Sprintf("%+v", holder{c}), fmt.Sprintf("%#v", holder{c}),
		fmt.Sprintf("%+v", c.Encryption()), fmt.Sprintf("%#v", c.Encryption()), fmt.Sprintf("%+v", c.CodecServer()), fmt.Sprintf("%#v", c.CodecServer()),
	} {
		require.NotContains(t, text, canary)
		require.NotContains(t, text, "CANARY4f1d")
	}
	require.Contains(t, string(settings), "temporal.example.com", "the settings themselves are there")

	_, err = c.Temporal()
	require.NoError(t, err)
}

func TestRedactedNamesTheSource(t *testing.T) {
	t.Parallel()
	c := load(t, environ{
		"MAX_AGENT": "7", "LLM_API_KEY_FILE": write(t, canary), "CHAT_LIST": "", "DRAIN_TIMEOUT": "10s", "TEMPORAL_NAMESPACE": "prod",
		"DB_HOST": "db", "DB_NAME": "n", "DB_USER": "u", "DB_PASSWORD": canary,
	})
	got := make(map[string]config.Setting)
	for _, s := range c.Redacted() {
		got[s.Name] = s
	}
	require.Len(t, got, len(config.Variables()))
	for _, want := range []config.Setting{
		{Name: "MAX_AGENT", Value: "7", Source: config.SourceEnv},
		{Name: "MAX_CHAT", Value: "0", Source: config.SourceDefault},
		{Name: "LLM_API_KEY", Value: "[redacted]", Source: config.SourceFile},
		{Name: "OPENAI_API_KEY", Source: config.SourceDefault},
		{Name: "CHAT_LIST", Source: config.SourceEnv},
		{Name: "DRAIN_TIMEOUT", Value: "10s", Source: config.SourceEnv},
		{Name: "STOP_GRACE", Source: config.SourceDefault},
		{Name: "TEMPORAL_NAMESPACE", Value: "prod", Source: config.SourceEnv},
		{Name: "TEMPORAL_ADDRESS", Value: "localhost:7233", Source: config.SourceDefault},
		{Name: "DATABASE_URL", Value: "mysql://u:***@db:3306/n", Source: config.SourceDefault},
		{Name: "REDIS_CONNECTION", Value: "redis://localhost:6379/0", Source: config.SourceDefault},
	} {
		require.Equal(t, want, got[want.Name])
	}
	require.NotEmpty(t, got["CONSUMER_NAME"].Value)
}

func TestRedactedOfARefusedConfiguration(t *testing.T) {
	t.Parallel()
	c, err := config.Load(environ{"REDIS_URL": "redis://:" + canary + "%@x", "LLM_ENDPOINT": "ftp://" + canary, "DATABASE_URL": canary, "MAX_AGENT": "x"})
	require.Error(t, err)
	text := fmt.Sprint(c.Redacted())
	require.NotContains(t, text, canary)
	require.Contains(t, text, "{MAX_AGENT x env}")
}

func TestEnviron(t *testing.T) {
	t.Setenv("EXECUTOR_TEST", "a=b")
	require.Equal(t, "a=b", config.Environ()["EXECUTOR_TEST"])
}

// TestEveryRoleHasItsSettings is what a new role meets that has none yet.
func TestEveryRoleHasItsSettings(t *testing.T) {
	t.Parallel()
	c := load(t, nil)
	for _, role := range job.Roles() {
		require.NotEmpty(t, c.Roles().ModelFor(job.Job{Role: role}), "a model for %s", role)
		require.Positive(t, c.Roles().MaxTokens[role], "MAX_TOKENS_ for %s", role)
		require.Contains(t, c.Worker().Slots, role, "MAX_ for %s", role)
		require.Contains(t, worker.Queues(), string(role))
	}
}
