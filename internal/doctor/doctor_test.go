package doctor

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm/llmtest"
	"github.com/nodpt/executor/internal/redistest"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/worker"
)

func allChecks(ask bool) []string {
	return slices.Concat([]string{configurationCheck}, redisChecks(), temporalChecks(), databaseChecks(), llmChecks(ask), processChecks())
}

func checks(results []Result) []string {
	var names []string
	for _, r := range results {
		names = append(names, r.Check)
	}
	return names
}

func TestAllIsWell(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Ask = true
	results := w.run()
	require.Empty(t, bad(results))
	for _, r := range results {
		require.Equal(t, OK, r.State, r)
		require.NotEmpty(t, r.Found, r.Check)
		require.Empty(t, r.Cause)
		require.Empty(t, r.Fix)
		require.Empty(t, r.Fixed)
	}
	require.Equal(t, allChecks(true), checks(results), "one each, in their order")
	require.Zero(t, ExitCode(results))
	require.Equal(t, w.cfg.Settings, results[0].Settings)
	require.Equal(t, 2, w.llm.Stats().Calls, "each model was asked, because --ask said so")

	w.cfg.Ask = false
	require.Equal(t, allChecks(false), checks(w.run()))
	require.Equal(t, 2, w.llm.Stats().Calls, "and only then")
}

// nobody is an address at which nobody listens. A port that was free a moment ago
// would soon be some other test's.
const nobody = "127.0.0.1:1"

// fault is a case of TestFaults.
type fault struct {
	make    func(t *testing.T, w *world)
	check   string
	state   State
	found   string
	cause   string
	fix     string
	code    int
	skipped []string // checks of which none is made, by prefix
	more    []string // other checks that are bad for the same reason
}

// Each fault alone: what is reported, with what cause and what to do about it,
// and what cannot be looked at for it.
func TestFaults(t *testing.T) {
	t.Parallel()
	tests := map[string]fault{
		"Redis: unknown name": {
			make:  func(_ *testing.T, w *world) { w.cfg.Redis.Connection = "redis.invalid" },
			check: redisConnect, state: Problem, found: "redis.invalid:6379", cause: "no address", fix: "correct the host in REDIS_URL", code: 3,
			skipped: []string{"redis.", databaseIdentity},
		},
		"Redis: nobody there": {
			make:  func(_ *testing.T, w *world) { w.cfg.Redis.Connection = "redis://:geheim@" + nobody },
			check: redisConnect, state: Problem, found: nobody, cause: "refused", fix: "start Redis there, or correct host and port in REDIS_URL", code: 3,
			skipped: []string{"redis.", databaseIdentity},
		},
		"Redis: speaks no TLS": {
			make: func(_ *testing.T, w *world) {
				w.cfg.Redis.Connection = "rediss://" + w.redis.Addr() + "?dial_timeout=5s"
			},
			check: redisConnect, state: Problem, cause: "TLS handshake", fix: "redis:// in place of rediss://", code: 1,
			skipped: []string{"redis.", databaseIdentity},
		},
		"Redis: certificate of nobody": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Redis.Connection = "rediss://" + secureServer(t, tls.NoClientCert).address
			},
			check: redisConnect, state: Problem, cause: "certificate", fix: "set REDIS_CA_FILE", code: 1,
			skipped: []string{"redis."},
		},
		"Redis: certificate of another host": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				secure := secureServer(t, tls.NoClientCert)
				w.cfg.Redis.Connection, w.cfg.Redis.CAFile = secure.address+",ssl=true,sslHost=wrong.test", secure.caFile
			},
			check: redisConnect, state: Problem, cause: "wrong.test", fix: "sslHost", code: 1,
			skipped: []string{"redis."},
		},
		"Redis: another server": {
			make: func(_ *testing.T, w *world) {
				w.cfg.Redis.Connection = w.temporal.address + ",password=geheim"
			},
			check: redisLogin, state: Problem, found: "closes the connection", cause: "wants TLS first", fix: "rediss://", code: 1,
			skipped: []string{redisVersion},
		},
		"Redis: no password": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Redis.Connection = redistest.StartWith(t, "--requirepass", "geheim").Addr()
			},
			check: redisLogin, state: Problem, found: "does not let user default in", cause: "NOAUTH", fix: "add it to REDIS_URL", code: 1,
			skipped: []string{redisVersion, redisBacklog, databaseIdentity},
		},
		"Redis: wrong password": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Redis.Connection = redistest.StartWith(t, "--requirepass", "geheim").Addr() + ",password=CANARY"
			},
			check: redisLogin, state: Problem, found: "does not let user default in", cause: "WRONGPASS", fix: "correct the password (and the user) in REDIS_URL", code: 1,
			skipped: []string{redisVersion, redisBacklog, databaseIdentity},
		},
		"Redis: no such database": {
			make:  func(_ *testing.T, w *world) { w.cfg.Redis.Connection = w.redis.Addr() + ",defaultDatabase=99" },
			check: redisLogin, state: Problem, cause: "database number", fix: "correct the number of the database in REDIS_URL", code: 1,
			skipped: []string{redisVersion},
		},
		"Redis: no right at all": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "ACL", "SETUSER", "bare", "on", ">geheim")
				w.cfg.Redis.Connection = w.redis.Addr() + ",user=bare,password=geheim"
			},
			check: redisLogin, state: Problem, found: "and do nothing", cause: "NOPERM", fix: "deploy/redis/users.acl", code: 1,
			skipped: []string{redisVersion},
		},
		"Redis: some rights": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "ACL", "SETUSER", "some", "on", ">geheim", "allkeys", "allchannels", "+@all", "-xack", "-lpop")
				w.cfg.Redis.Connection = w.redis.Addr() + ",user=some,password=geheim"
			},
			check: redisRights, state: Problem, found: "lacks rights to xack and lpop",
			fix:  "--user admin --askpass ACL SETUSER some '(+xack ~jobs:*)' '(+lpop ~chat.jobs)'",
			code: 1,
		},
		"Redis: no scripts": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "ACL", "SETUSER", "mute", "on", ">geheim", "allkeys", "allchannels", "+@all", "-@scripting")
				w.cfg.Redis.Connection = w.redis.Addr() + ",user=mute,password=geheim"
			},
			check: redisRights, state: Problem, found: "may not run scripts", cause: "NOPERM", fix: "ACL SETUSER mute", code: 1,
		},
		"Redis: may not ask about the server": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "ACL", "SETUSER", "blind", "on", ">geheim", "allkeys", "allchannels", "+@all", "-info")
				w.cfg.Redis.Connection = w.redis.Addr() + ",user=blind,password=geheim"
			},
			check: redisRights, state: Problem, found: "lacks rights to info", fix: "(+info)", code: 1,
			skipped: []string{redisVersion, redisRole, redisPersistence, redisEviction},
		},
		"Redis: no persistence": {
			make:  func(t *testing.T, w *world) { t.Helper(); admin(t, w, "CONFIG", "SET", "appendonly", "no") },
			check: redisPersistence, state: Problem, found: "append-only file is off", cause: "loses jobs", fix: "CONFIG SET appendonly yes", code: 1,
		},
		"Redis: eviction": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "volatile-lru")
			},
			check: redisEviction, state: Problem, found: "volatile-lru", cause: "drops keys", fix: "CONFIG SET maxmemory-policy noeviction", code: 1,
		},
		"Redis: eviction without a limit": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
			},
			check: redisEviction, state: Warning, found: "maxmemory is not set", fix: "noeviction",
		},
		"Redis: a replica": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				host, port, err := net.SplitHostPort(w.redis.Addr())
				require.NoError(t, err)
				replica := redistest.StartWith(t, "--appendonly", "yes", "--replicaof", host+" "+port)
				w.cfg.Redis.Connection = replica.Addr()
				c, err := stream.Open(w.cfg.Redis, nil)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, c.Close()) })
				require.Eventually(t, func() bool { id, err := c.AnnouncedStore(t.Context()); return err == nil && id != "" }, time.Minute, 10*time.Millisecond)
			},
			check: redisRole, state: Problem, found: "read-only replica", fix: "name the primary, 127.0.0.1:", code: 1,
		},
		"Redis: a cluster": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Redis.Connection = redistest.StartWith(t, "--appendonly", "yes", "--cluster-enabled", "yes").Addr()
			},
			check: redisRole, state: Problem, found: "Redis Cluster", fix: "REDIS_URL", code: 1,
			skipped: []string{databaseIdentity},
			more:    []string{redisRights, redisGroups, redisBridges, redisBacklog},
		},
		"Redis: a group is missing": {
			make:  func(t *testing.T, w *world) { t.Helper(); admin(t, w, "DEL", "jobs:chat") },
			check: redisGroups, state: Warning, found: "no group executor-group on jobs:chat", fix: "executor doctor --fix",
		},
		"Redis: a stream is something else": {
			make:  func(t *testing.T, w *world) { t.Helper(); admin(t, w, "SET", "jobs:chat", "v") },
			check: redisGroups, state: Problem, found: "jobs:chat is no stream", fix: "RENAME jobs:chat jobs:chat:old", code: 1,
			skipped: []string{redisBacklog},
		},
		"Redis: no bridge": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "DEL", "{executor}:lease:reconcile")
				admin(t, w, "XADD", "jobs:agent", "*", "k", "v")
				_, err := w.consumer.ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
				require.NoError(t, err)
			},
			check: redisBridges, state: Problem, found: "no bridge is running; 1 entries wait", cause: "nobody reads", fix: "executor run", code: 1,
		},
		"Redis: too many in flight": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				for range w.cfg.MaxInFlight + 1 {
					admin(t, w, "XADD", "jobs:agent", "*", "k", "v")
				}
				_, err := w.consumer.ReadNew(t.Context(), "jobs:agent", int(w.cfg.MaxInFlight), time.Millisecond)
				require.NoError(t, err)
			},
			check: redisBacklog, state: Warning, found: "jobs:agent is not read: 10 jobs are in flight", cause: "BRIDGE_MAX_IN_FLIGHT", fix: "executor worker",
		},
		"Redis: an old job": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "XADD", "jobs:agent", "1700000000000-1", "k", "v")
				_, err := w.consumer.ReadNew(t.Context(), "jobs:agent", 1, time.Millisecond)
				require.NoError(t, err)
			},
			check: redisBacklog, state: Warning, found: "oldest job", fix: "executor list",
		},

		"Temporal: unknown name": {
			make:  func(_ *testing.T, w *world) { w.cfg.Temporal.HostPort = "temporal.invalid:7233" },
			check: temporalConnect, state: Problem, cause: "no address", fix: "correct the host in TEMPORAL_ADDRESS", code: 3,
			skipped: []string{"temporal."},
		},
		"Temporal: down": {
			make:  func(_ *testing.T, w *world) { w.cfg.Temporal.HostPort = nobody },
			check: temporalConnect, state: Problem, found: "no connection to " + nobody, cause: "refused", fix: "start the Temporal server there, or set TEMPORAL_ADDRESS", code: 3,
			skipped: []string{"temporal."},
		},
		"Temporal: another server": {
			make: func(_ *testing.T, w *world) {
				w.cfg.Temporal.HostPort = "dns:///" + w.ready.Listener.Addr().String()
			},
			check: temporalConnect, state: Problem, found: "no Temporal server answers", fix: "TEMPORAL_ADDRESS", code: 3,
			skipped: []string{"temporal."},
		},
		"Temporal: wants TLS": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Temporal.HostPort = secureServer(t, tls.NoClientCert).address
			},
			check: temporalConnect, state: Problem, cause: "wants TLS", fix: "set TEMPORAL_TLS=true", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: speaks no TLS": {
			make:  func(_ *testing.T, w *world) { w.cfg.Temporal.ConnectionOptions.TLS = &tls.Config{} },
			check: temporalConnect, state: Problem, cause: "does not speak TLS", fix: "set TEMPORAL_TLS=false", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: certificate of nobody": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Temporal.HostPort = secureServer(t, tls.NoClientCert).address
				w.cfg.Temporal.ConnectionOptions.TLS = &tls.Config{}
			},
			check: temporalConnect, state: Problem, cause: "certificate", fix: "TEMPORAL_TLS_SERVER_CA_CERT_PATH", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: certificate of another host": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				secure := secureServer(t, tls.NoClientCert)
				w.cfg.Temporal.HostPort = secure.address
				w.cfg.Temporal.ConnectionOptions.TLS = &tls.Config{RootCAs: secure.roots, ServerName: "wrong.test"}
			},
			check: temporalConnect, state: Problem, cause: "wrong.test", fix: "TEMPORAL_TLS_SERVER_NAME", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: wants a certificate of ours": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				secure := secureServer(t, tls.RequireAnyClientCert)
				w.cfg.Temporal.HostPort = secure.address
				w.cfg.Temporal.ConnectionOptions.TLS = &tls.Config{RootCAs: secure.roots}
			},
			check: temporalConnect, state: Problem, cause: "certificate required", fix: "TEMPORAL_TLS_CLIENT_CERT_PATH", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: wants a certificate of ours, by TLS 1.2": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				secure := secureServer(t, tls.RequireAnyClientCert)
				w.cfg.Temporal.HostPort = secure.address
				w.cfg.Temporal.ConnectionOptions.TLS = &tls.Config{RootCAs: secure.roots, MaxVersion: tls.VersionTLS12}
			},
			check: temporalConnect, state: Problem, cause: "remote error", fix: "TEMPORAL_TLS_CLIENT_CERT_PATH", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: not let in": {
			make: func(_ *testing.T, w *world) {
				w.temporal.errors["GetSystemInfo"] = serviceerror.NewPermissionDenied("no", "")
			},
			check: temporalConnect, state: Problem, found: "does not let us in", fix: "TEMPORAL_API_KEY", code: 1,
			skipped: []string{"temporal."},
		},
		"Temporal: no namespace": {
			make:  func(_ *testing.T, w *world) { w.cfg.Temporal.Namespace = "other" },
			check: temporalNamespace, state: Problem, found: "there is no namespace other", cause: "TEMPORAL_NAMESPACE",
			fix: "temporal operator namespace create --namespace other --retention 168h --address 127.0.0.1:", code: 1,
			skipped: []string{temporalRetention, temporalWorkers},
		},
		"Temporal: namespace is gone": {
			make:  func(_ *testing.T, w *world) { w.temporal.state = enumspb.NAMESPACE_STATE_DELETED },
			check: temporalNamespace, state: Problem, found: "is deleted", fix: "TEMPORAL_NAMESPACE", code: 1,
			skipped: []string{temporalWorkers},
		},
		"Temporal: namespace of others": {
			make: func(_ *testing.T, w *world) {
				w.temporal.errors["DescribeNamespace"] = serviceerror.NewPermissionDenied("no", "")
			},
			check: temporalNamespace, state: Problem, cause: "no", fix: "credentials that may use namespace jobs", code: 1,
			skipped: []string{temporalWorkers},
		},
		"Temporal: in trouble": {
			make: func(_ *testing.T, w *world) {
				w.temporal.errors["DescribeTaskQueue"] = serviceerror.NewInternal("persistence")
			},
			check: temporalWorkers, state: Problem, cause: "persistence", fix: "temporal operator cluster health", code: 3,
			skipped: []string{temporalBacklog},
		},
		"Temporal: short retention": {
			make:  func(_ *testing.T, w *world) { w.temporal.namespaces["jobs"] = 24 * time.Hour },
			check: temporalRetention, state: Warning, found: "kept 1 day", cause: "7 days are recommended",
			fix: "temporal operator namespace update --namespace jobs --retention 168h",
		},
		"Temporal: attributes are missing": {
			make:  func(_ *testing.T, w *world) { delete(w.temporal.attributes, "JobRole") },
			check: temporalAttributes, state: Warning, found: "JobRole are not registered", fix: "search-attribute create --namespace jobs --name JobRole --type Keyword",
		},
		"Temporal: attributes of another type": {
			make: func(_ *testing.T, w *world) {
				w.temporal.attributes["JobUser"] = enumspb.INDEXED_VALUE_TYPE_TEXT
			},
			check: temporalAttributes, state: Problem, found: "JobUser (Text)", fix: "TEMPORAL_NAMESPACE", code: 1,
		},
		"Temporal: attributes cannot be listed": {
			make: func(_ *testing.T, w *world) {
				w.temporal.errors["ListSearchAttributes"] = serviceerror.NewPermissionDenied("no", "")
			},
			check: temporalAttributes, state: Warning, found: "cannot be listed", fix: "search-attribute list",
		},
		"Temporal: no worker at all": {
			make: func(_ *testing.T, w *world) {
				for _, q := range taskQueues() {
					w.temporal.unserved[q.name] = true
				}
			},
			check: temporalWorkers, state: Problem, found: "no worker on executor-workflows, executor-manager", fix: "executor run", code: 1,
		},
		"Temporal: no worker on a queue": {
			make: func(_ *testing.T, w *world) {
				w.temporal.unserved["executor-agent"] = true
				w.temporal.lastSeen = 3 * time.Minute
				w.temporal.backlog["executor-agent"] = 2 * time.Minute
			},
			check: temporalWorkers, state: Problem, found: "no worker on executor-agent; 3 tasks wait", cause: "the last one 3m ago", fix: "executor worker --queues agent", code: 1,
		},
		"Temporal: workers are busy": {
			make:  func(_ *testing.T, w *world) { w.temporal.backlog["executor-chat"] = time.Hour },
			check: temporalBacklog, state: Warning, found: "executor-chat 3 (oldest 60m)", fix: "raise MAX_CHAT",
			cause: "slots",
		},

		"database: not a database": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				path := filepath.Join(t.TempDir(), "text.db")
				require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("this is no database. ", 100)), 0o600))
				w.cfg.Store.URL = "sqlite://" + path
			},
			check: databaseConnect, state: Problem, cause: "no SQLite database", fix: "correct DATABASE_URL", code: 1,
			skipped: []string{"database."},
		},
		"database: a directory": {
			make:  func(t *testing.T, w *world) { t.Helper(); w.cfg.Store.URL = "sqlite://" + t.TempDir() },
			check: databaseConnect, state: Problem, fix: "correct the path in DATABASE_URL", code: 1,
			skipped: []string{"database."},
		},
		"database: server is down": {
			make: func(_ *testing.T, w *world) {
				w.cfg.Store.URL = "postgres://user:CANARY@" + nobody + "/executor"
			},
			check: databaseConnect, state: Problem, found: "postgres://user:***@" + nobody + "/executor", cause: "refused",
			fix: "start the database server, or correct host and port in DATABASE_URL", code: 3,
			skipped: []string{"database."},
		},
		"database: unknown name": {
			make:  func(_ *testing.T, w *world) { w.cfg.Store.URL = "mysql://user:CANARY@db.invalid/executor" },
			check: databaseConnect, state: Problem, cause: "db.invalid", fix: "correct the host in DATABASE_URL", code: 3,
			skipped: []string{"database."},
		},
		"database: another one than the others'": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Store.URL = "sqlite://" + filepath.Join(t.TempDir(), "other.db")
				other, err := store.Open(t.Context(), w.cfg.Store, nil)
				require.NoError(t, err)
				require.NoError(t, other.Close())
			},
			check: databaseIdentity, state: Problem, cause: "two databases on one Redis", fix: "set DATABASE_URL to the database of the running executors", code: 1,
		},
		"database: empty, beside another one": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.Store.URL = "sqlite://" + filepath.Join(t.TempDir(), "other.db")
			},
			check: databaseTables, state: Problem, cause: "use another database", fix: "set DATABASE_URL", code: 1,
			skipped: []string{databaseIdentity, databaseWrite, databaseClock},
		},
		"database: empty": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				admin(t, w, "DEL", "{executor}:store")
				w.cfg.Store.URL = "sqlite://" + filepath.Join(t.TempDir(), "other.db")
			},
			check: databaseTables, state: Warning, found: "no tables", fix: "executor doctor --fix",
			skipped: []string{databaseWrite},
		},

		"LLM: unknown name": {
			make:  func(_ *testing.T, w *world) { w.cfg.LLM.Endpoint = "http://llm.invalid/v1/chat/completions" },
			check: llmConnect, state: Problem, cause: "no address", fix: "correct host and port in LLM_ENDPOINT", code: 3,
			skipped: []string{"llm."},
		},
		"LLM: nobody there": {
			make: func(_ *testing.T, w *world) {
				w.cfg.LLM.Endpoint = "http://user:CANARY@" + nobody + "/v1?key=CANARY"
			},
			check: llmConnect, state: Problem, found: "http://" + nobody, cause: "refused", fix: "start the LLM server", code: 3,
			skipped: []string{"llm."},
		},
		"LLM: speaks no TLS": {
			make: func(_ *testing.T, w *world) {
				w.cfg.LLM.Endpoint = strings.Replace(w.llm.Endpoint(), "http:", "https:", 1)
			},
			check: llmConnect, state: Problem, cause: "does not speak TLS", fix: "LLM_ENDPOINT=http://127.0.0.1", code: 1,
			skipped: []string{"llm."},
		},
		"LLM: wants TLS": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.LLM.Endpoint = "http://" + secureServer(t, tls.NoClientCert).address + "/v1/chat/completions"
			},
			check: llmConnect, state: Problem, found: "wants https", fix: "LLM_ENDPOINT=https://127.0.0.1", code: 1,
			skipped: []string{"llm."},
		},
		"LLM: certificate of nobody": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.cfg.LLM.Endpoint = "https://" + secureServer(t, tls.NoClientCert).address + "/v1/chat/completions"
			},
			check: llmConnect, state: Problem, cause: "certificate is not accepted", fix: "SSL_CERT_FILE", code: 1,
			skipped: []string{"llm."},
		},
		"LLM: wrong path": {
			make:  func(_ *testing.T, w *world) { w.cfg.LLM.Endpoint = w.llm.URL + "/v1/chat?key=CANARY" },
			check: llmPath, state: Problem, found: "/v1/chat is no chat endpoint", cause: "status 404 (Not Found)",
			fix: "set LLM_ENDPOINT=http://127.0.0.1:", code: 1,
			skipped: []string{llmModels},
		},
		"LLM: a page": {
			make:  func(_ *testing.T, w *world) { w.cfg.LLM.Endpoint = w.ready.URL + "/" },
			check: llmPath, state: Problem, cause: "status 200", fix: "/v1/chat/completions", code: 1,
			skipped: []string{llmModels},
		},
		"LLM: wrong key": {
			make:  func(_ *testing.T, w *world) { w.cfg.LLM.APIKey = "CANARY" },
			check: llmKey, state: Problem, found: "refuses the key in LLM_API_KEY_FILE", cause: "401", fix: "set LLM_API_KEY_FILE to a key", code: 1,
			skipped: []string{llmPath, llmModels},
		},
		"LLM: no key": {
			make:  func(_ *testing.T, w *world) { w.cfg.LLM.APIKey = "" },
			check: llmKey, state: Problem, found: "none is set", fix: "set LLM_API_KEY", code: 1,
			skipped: []string{llmPath},
		},
		"LLM: account used up":   httpFault(http.StatusPaymentRequired, llmKey, Problem, "used up", 1),
		"LLM: loading":           httpFault(http.StatusServiceUnavailable, llmPath, Problem, "has trouble", 3),
		"LLM: too many requests": httpFault(http.StatusTooManyRequests, llmPath, Warning, "limits requests", 0),
		"LLM: model is missing": {
			make:  func(_ *testing.T, w *world) { w.cfg.Models[0].Name = "medium" },
			check: llmModels, state: Problem, found: "no model medium", cause: "MODEL_AGENT and DEFAULT_MODEL name it",
			fix: "set MODEL_AGENT and DEFAULT_MODEL to one that is there: large, small", code: 1,
		},
		"LLM: optional model is missing": {
			make:  func(_ *testing.T, w *world) { w.cfg.Models[1].Name = "huge" },
			check: llmModels, state: Warning, found: "no model huge", cause: "CHAT_MODELS names it", fix: "set CHAT_MODELS",
		},
		"LLM: no list": {
			make:  func(_ *testing.T, w *world) { w.llm.Script(func(o *llmtest.Options) { o.NoModelList = true }) },
			check: llmModels, state: Warning, found: "lists no models", fix: "executor doctor --ask",
		},
		"LLM: model does not answer": {
			make: func(_ *testing.T, w *world) {
				w.cfg.Ask = true
				w.llm.Script(func(o *llmtest.Options) {
					o.Rules = []llmtest.Rule{{Model: "small", Behavior: llmtest.Behavior{Status: http.StatusInternalServerError}}}
				})
			},
			check: llmAnswers, state: Problem, found: "model small does not answer", cause: "llm_server_error", fix: "log of the LLM server", code: 3,
		},
		"LLM: asked model is not there": {
			make: func(_ *testing.T, w *world) {
				w.cfg.Ask = true
				w.cfg.Models = []Model{{Name: "medium", Variables: []string{"MODEL_CHAT"}}}
				w.llm.Script(func(o *llmtest.Options) { o.NoModelList = true })
			},
			check: llmAnswers, state: Problem, found: "model medium does not answer", cause: "404", fix: "set MODEL_CHAT to a model", code: 1,
			more: []string{llmModels},
		},

		"process: none": {
			make:  func(_ *testing.T, w *world) { w.cfg.HTTPAddr = nobody },
			check: processReady, state: Skipped, cause: "no executor answers at HTTP_ADDR (" + nobody,
		},
		"process: something else": {
			make:  func(_ *testing.T, w *world) { w.cfg.HTTPAddr = strings.TrimPrefix(w.llm.URL, "http://") },
			check: processReady, state: Warning, found: "something else", fix: "HTTP_ADDR",
			cause: "404",
		},
		"process: not ready": {
			make: func(t *testing.T, w *world) {
				t.Helper()
				w.ready.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(http.StatusServiceUnavailable)
					_, _ = w.Write([]byte(`{"status":"not ready","checks":{"temporal":"connection refused","redis":"ok"}}`))
				})
			},
			check: processReady, state: Problem, found: "is not ready", cause: "temporal: connection refused", fix: "log", code: 3,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			tt.make(t, w)
			results := w.run()
			if tt.state != Skipped {
				for _, other := range bad(results) {
					known := strings.HasPrefix(other, tt.check+" ") || slices.ContainsFunc(tt.more, func(c string) bool { return strings.HasPrefix(other, c+" ") })
					require.True(t, known, other)
				}
			}
			found := find(results, tt.check)
			require.NotEmpty(t, found)
			i := max(0, slices.IndexFunc(found, func(r Result) bool { return strings.Contains(r.Found, tt.found) }))
			r := found[i]
			require.Equal(t, tt.state, r.State, r)
			require.Contains(t, r.Found, tt.found)
			require.Contains(t, r.Cause, tt.cause)
			require.Contains(t, strings.Join(r.Fix, "\n"), tt.fix)
			if tt.state != Skipped {
				require.NotEmpty(t, r.Cause, "a cause")
				require.NotEmpty(t, r.Fix, "and what to do about it")
			}
			require.Equal(t, tt.code, ExitCode(results), bad(results))
			for _, prefix := range tt.skipped {
				for _, r := range results {
					if strings.HasPrefix(r.Check, prefix) && r.Check != tt.check && r.State != OK {
						require.Equal(t, Skipped, r.State, r.Check)
						require.NotEmpty(t, r.Cause, r.Check)
					}
				}
			}
			encoded, err := json.Marshal(results)
			require.NoError(t, err)
			require.NotContains(t, string(encoded), "CANARY")
			require.NotContains(t, string(encoded), "geheim")
		})
	}
}

// secure is a server that speaks TLS, and nothing that anybody here wants.
type secure struct {
	address, caFile string
	roots           *x509.CertPool
}

func secureServer(t *testing.T, clients tls.ClientAuthType) secure {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = discard()
	server.TLS = &tls.Config{ClientAuth: clients, NextProtos: []string{"h2", "http/1.1"}}
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	return secure{address: server.Listener.Addr().String(), caFile: file, roots: roots}
}

// httpFault is an LLM server that answers everything with one status.
func httpFault(status int, check string, state State, found string, code int) fault {
	return fault{
		make: func(t *testing.T, w *world) {
			t.Helper()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && status == http.StatusTooManyRequests {
					_, _ = w.Write([]byte(`{"data":[{"id":"small"},{"id":"large"}]}`))
					return
				}
				w.WriteHeader(status)
			}))
			t.Cleanup(server.Close)
			u, err := url.JoinPath(server.URL, "v1/chat/completions")
			require.NoError(t, err)
			w.cfg.LLM.Endpoint = u
		},
		check: check, state: state, found: found, code: code, cause: http.StatusText(status),
	}
}

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

// admin sends one command to the world's Redis, for what the executor never does.
func admin(t *testing.T, w *world, args ...string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.redis.Addr())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	_, err = io.WriteString(conn, b.String())
	require.NoError(t, err)
	reply, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.False(t, strings.HasPrefix(reply, "-"), "%v: %s", args, reply)
}

func TestFixHeals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin(t, w, "DEL", "jobs:chat", "jobs:agent", "{executor}:store")
	w.cfg.Store.URL = "sqlite://" + filepath.Join(t.TempDir(), "new.db")
	w.temporal.namespaces["jobs"] = 24 * time.Hour
	delete(w.temporal.attributes, "JobRole")
	require.Len(t, bad(w.run()), 4)

	w.cfg.Fix = true
	results := w.run()
	require.Empty(t, bad(results))
	for check, done := range map[string]string{
		redisGroups:        "created group executor-group on jobs:agent and jobs:chat",
		temporalRetention:  "raised the retention from 1 day to 7 days",
		temporalAttributes: "registered JobRole",
		databaseTables:     "created the tables",
	} {
		require.Equal(t, done, find(results, check)[0].Fixed)
	}
	results = w.run()
	require.Empty(t, bad(results))
	for _, r := range results {
		require.Empty(t, r.Fixed, "nothing is left to do")
	}

	w.cfg.Temporal.Namespace = "new"
	results = w.run()
	require.Empty(t, bad(results))
	require.Equal(t, "created namespace new", find(results, temporalNamespace)[0].Fixed)
	require.Equal(t, recommendedRetention, w.temporal.namespaces["new"])
}

// What may not be put right is left to the person, with the reason.
func TestFixRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Fix = true
	w.temporal.namespaces["jobs"] = 24 * time.Hour
	w.temporal.attributes = nil
	for _, method := range []string{"UpdateNamespace", "AddSearchAttributes", "RegisterNamespace"} {
		w.temporal.errors[method] = serviceerror.NewPermissionDenied("not yours", "")
	}
	results := w.run()
	for check, word := range map[string]string{temporalRetention: "raised", temporalAttributes: "registered"} {
		r := find(results, check)[0]
		require.Equal(t, Warning, r.State)
		require.Contains(t, r.Cause, "could not be "+word+": not yours")
		require.Contains(t, r.Fix[0], "temporal operator")
		require.Empty(t, r.Fixed)
	}

	w.cfg.Temporal.Namespace = "other"
	r := find(w.run(), temporalNamespace)[0]
	require.Equal(t, Problem, r.State)
	require.Contains(t, r.Cause, "could not be created: not yours")
	require.Contains(t, r.Fix[0], "temporal operator namespace create --namespace other")

	// A second store is not made beside one that may be in use.
	w.cfg.Store.URL = "sqlite://" + filepath.Join(t.TempDir(), "other.db")
	r = find(w.run(), databaseTables)[0]
	require.Equal(t, Problem, r.State)
	require.Contains(t, r.Cause, "use another database")
	w.cfg.Redis.Connection = nobody
	r = find(w.run(), databaseTables)[0]
	require.Equal(t, Warning, r.State)
	require.Contains(t, r.Cause, "Redis could not be asked")
	require.NoFileExists(t, strings.TrimPrefix(w.cfg.Store.URL, "sqlite://"))

	admin(t, w, "DEL", "{executor}:store")
	w.cfg.Redis.Connection = w.redis.Addr()
	w.cfg.Store.URL = "sqlite:///nowhere/other.db"
	r = find(w.run(), databaseTables)[0]
	require.Equal(t, Problem, r.State)
	require.Contains(t, r.Cause, "could not be created")
}

func TestMistakesInTheSettings(t *testing.T) {
	t.Parallel()
	results := Run(t.Context(), Config{
		Settings: []Setting{{"MAX_AGENT", "many"}},
		Mistakes: []Mistake{{"MAX_AGENT", "must be a whole number"}, {"LLM_TIMEOUT", "must be a duration"}},
		Warnings: []string{"something"},
	})
	require.Equal(t, []Result{
		{
			Check: configurationCheck, State: Problem, Found: "MAX_AGENT is not usable", Cause: "must be a whole number", Fix: []string{"correct MAX_AGENT"},
			Settings: []Setting{{"MAX_AGENT", "many"}},
		},
		{Check: configurationCheck, State: Problem, Found: "LLM_TIMEOUT is not usable", Cause: "must be a duration", Fix: []string{"correct LLM_TIMEOUT"}},
		{Check: configurationCheck, State: Warning, Found: "something"},
	}, results[:3])
	require.Equal(t, allChecks(false)[1:], checks(results[3:]))
	for _, r := range results[3:] {
		require.Equal(t, Result{Check: r.Check, State: Skipped, Cause: "configuration comes first"}, r)
	}
	require.Equal(t, 2, ExitCode(results))
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	down, wrong := Result{State: Problem, Unreachable: true}, Result{State: Problem}
	for want, results := range map[int][][]Result{
		0: {nil, {{State: OK}, {State: Warning}, {State: Skipped}}},
		1: {{wrong}, {down, wrong}, {wrong, down}},
		2: {{{Check: configurationCheck, State: Problem}}, {wrong, {Check: configurationCheck, State: Problem}}},
		3: {{down}, {{State: Warning}, down}},
	} {
		for _, r := range results {
			require.Equal(t, want, ExitCode(r), r)
		}
	}
}

// A doctor without patience blames no setting.
func TestNoTimeLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	results := Run(ctx, w.cfg)
	require.Equal(t, 3, ExitCode(results), bad(results))
	require.Equal(t, allChecks(false), checks(results))
}

func TestNamesMatchTheCode(t *testing.T) {
	t.Parallel()
	names := []string{}
	for _, q := range taskQueues() {
		names = append(names, q.short)
	}
	require.Equal(t, worker.Queues(), names, "as executor worker --queues takes them")
	require.Len(t, streams(), len(job.Roles()))
}

func TestCommands(t *testing.T) {
	t.Parallel()
	require.Equal(t, `a b-c 'd e' 'it'\''s' '(+x ~y:*)'`, command("a", "b-c", "d e", "", "it's", "(+x ~y:*)"))
	for raw, want := range map[string]string{
		"postgres://me:pw@db:5433/jobs?sslmode=require": "createdb -h db -p 5433 -U me -E UTF8 -T template0 jobs",
		"postgres:///jobs":          "createdb -E UTF8 -T template0 jobs",
		"mysql://me:pw@db/jobs":     "mysql -h db -u me -p -e 'CREATE DATABASE `jobs` CHARACTER SET utf8mb4'",
		"mariadb://me@db:3307/jobs": "mysql -h db -P 3307 -u me -p -e 'CREATE DATABASE `jobs` CHARACTER SET utf8mb4'",
	} {
		require.Equal(t, want, createDatabase(raw))
	}
	for connection, want := range map[string]string{
		"localhost":                        "redis-cli PING",
		"redis://:pw@redis.internal:6400":  "redis-cli -h redis.internal -p 6400 --askpass PING",
		"rediss://executor:pw@10.0.0.1":    "redis-cli -h 10.0.0.1 --tls --cacert /ca.pem --user admin --askpass PING",
		"127.0.0.1:6379,password=pw":       "redis-cli --askpass PING",
		"127.0.0.1,user=default,password=": "redis-cli PING",
	} {
		conn, err := stream.ParseConnection(connection)
		require.NoError(t, err)
		p := redisPatient{doctor: &doctor{cfg: Config{Redis: stream.Config{CAFile: "/ca.pem"}}}, conn: conn}
		require.Equal(t, want, p.cli("PING"))
	}
}

func TestReasonsAreShort(t *testing.T) {
	t.Parallel()
	require.Equal(t, "two lines", reason(errors.New("two\n  lines")))
	require.Less(t, len(reason(errors.New(strings.Repeat("é", 1000)))), 310)
}

// What no redis-server on this machine says of itself.
func TestOtherServersThanRedis(t *testing.T) {
	t.Parallel()
	healthy := stream.ServerInfo{Version: "7.2.4", Mode: "standalone", AppendOnly: "on", Policy: "noeviction"}
	tests := map[string]struct {
		change func(*stream.ServerInfo)
		check  string
		state  State
		found  string
	}{
		"as it should be":   {func(*stream.ServerInfo) {}, redisVersion, OK, "Redis 7.2.4"},
		"too old":           {func(i *stream.ServerInfo) { i.Version = "6.2.14" }, redisVersion, Problem, "Redis 6.2.14"},
		"new":               {func(i *stream.ServerInfo) { i.Version = "10.0.0" }, redisVersion, OK, "10.0.0"},
		"without version":   {func(i *stream.ServerInfo) { i.Version = "" }, redisVersion, Warning, "does not say its version"},
		"a Sentinel":        {func(i *stream.ServerInfo) { i.Mode = "sentinel" }, redisRole, Problem, "Sentinel"},
		"disk is full":      {func(i *stream.ServerInfo) { i.AppendFailed = true }, redisPersistence, Problem, "cannot be written"},
		"says nothing":      {func(i *stream.ServerInfo) { i.AppendOnly = "" }, redisPersistence, Warning, "does not say"},
		"nothing of policy": {func(i *stream.ServerInfo) { i.Policy = "" }, redisEviction, OK, "not told"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			info := healthy
			tt.change(&info)
			p := redisPatient{doctor: &doctor{cfg: Config{Variables: Variables{Redis: "REDIS_URL"}}}, sheet: &sheet{}}
			p.version(info)
			p.role(info)
			p.persistence(info)
			p.eviction(info)
			require.Len(t, p.results, 4)
			for _, r := range p.results {
				if r.Check != tt.check {
					require.Equal(t, OK, r.State, r)
					continue
				}
				require.Equal(t, tt.state, r.State)
				require.Contains(t, r.Found, tt.found)
			}
		})
	}
}
