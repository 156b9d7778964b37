package config_test

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Fault C04: clear text to this machine is nobody's business, to a private
// network it is warned about, and to the internet it is refused unless
// ALLOW_INSECURE=1 says otherwise. Temporal has a test of its own.
func TestClearText(t *testing.T) {
	t.Parallel()
	const fine, warned, refused = "fine", "warned", "refused"
	ca := filepath.Join(writeCertificate(t), "cert.pem")
	chat := "/v1/chat/completions"
	for _, tt := range []struct {
		variable string
		values   map[string]string
	}{
		{"REDIS_CONNECTION", map[string]string{
			"localhost:6379":                            fine,
			"127.0.0.1:6379,password=" + canary:         fine,
			"[::1]:6379":                                fine,
			"redis:6379,password=" + canary:             warned,
			"10.0.0.5":                                  warned,
			"redis.cache.svc:6379":                      warned,
			"redis.example.com:6379":                    refused,
			"redis.example.com,ssl=false":               refused,
			"8.8.8.8:6379,password=" + canary:           refused,
			"redis://:" + canary + "@redis.example.com": refused,
			"redis.example.com:6379,ssl=true":           fine,
			"rediss://:" + canary + "@8.8.8.8:6379":     fine,
		}},
		{"REDIS_URL", map[string]string{
			"redis://redis:6379":         warned,
			"redis://redis.example.com":  refused,
			"rediss://redis.example.com": fine,
		}},
		{"LLM_ENDPOINT", map[string]string{
			"http://localhost:11434" + chat:        fine,
			"http://ollama:11434" + chat:           warned,
			"http://192.168.1.2:11434" + chat:      warned,
			"http://8.8.8.8" + chat:                refused,
			"http://llm.example.com" + chat:        refused,
			"http://[2001:4860:4860::8888]" + chat: refused,
			"https://llm.example.com" + chat:       fine,
		}},
		{"DATABASE_URL", map[string]string{
			"sqlite://x.db": fine,
			"postgres://u:" + canary + "@localhost/x?sslmode=disable":                            fine,
			"postgres://u:" + canary + "@/x?host=/run/postgresql":                                fine,
			"postgres://u:" + canary + "@postgres/x":                                             warned,
			"postgres://u:" + canary + "@postgres/x?sslmode=disable":                             warned,
			"postgres://u:" + canary + "@postgres/x?sslmode=require":                             warned, // not verified
			"postgres://u:" + canary + "@db.example.com/x?sslmode=require":                       warned,
			"postgres://u:" + canary + "@db.example.com/x":                                       refused, // prefers TLS, and does without
			"postgres://u:" + canary + "@db.example.com/x?sslmode=disable":                       refused,
			"postgres://u:" + canary + "@10.0.0.1,db.example.com/x?sslmode=prefer":               refused,
			"postgres://u:" + canary + "@db.example.com/x?sslmode=verify-full&sslrootcert=" + ca: fine,
			"mysql://u:" + canary + "@mariadb/x":                                                 warned,
			"mysql://u:" + canary + "@db.example.com/x":                                          refused,
			"mysql://u:" + canary + "@db.example.com/x?tls=preferred":                            refused,
			"mysql://u:" + canary + "@db.example.com/x?tls=skip-verify":                          warned,
			"mysql://u:" + canary + "@db.example.com/x?tls=true":                                 fine,
		}},
	} {
		for value, want := range tt.values {
			t.Run(tt.variable+"="+value, func(t *testing.T) {
				t.Parallel()
				env := environ{tt.variable: value, "MAX_TOTAL": "1"}
				if want == refused {
					found := mistakes(t, env)
					require.Len(t, found, 1)
					require.Contains(t, found[tt.variable], "clear text")
					require.Contains(t, found[tt.variable], "ALLOW_INSECURE=1")
					require.NotContains(t, found[tt.variable], canary)

					env = maps.Clone(env)
					env["ALLOW_INSECURE"] = "1"
					want = warned
				}
				warnings := load(t, env).Warnings()
				if want == fine {
					require.Empty(t, warnings)
					return
				}
				require.NotEmpty(t, warnings)
				for _, w := range warnings {
					require.Contains(t, w, tt.variable)
					require.NotContains(t, w, canary)
				}
			})
		}
	}

	t.Run("the parts of a database", func(t *testing.T) {
		t.Parallel()
		env := environ{"DB_HOST": "db.example.com", "DB_NAME": "n", "DB_USER": "u", "DB_PASSWORD": canary, "MAX_TOTAL": "1"}
		require.Contains(t, mistakes(t, env)["DB_HOST"], "tls=true (MySQL) into DATABASE_URL")
		env["DB_HOST"] = "mariadb"
		require.Len(t, load(t, env).Warnings(), 1)
	})
}
