package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testDatabases names the servers to test besides SQLite, as in
// EXECUTOR_TEST_DATABASES=postgres,mysql. A server that is named and missing
// fails the tests.
const testDatabases = "EXECUTOR_TEST_DATABASES"

// databases is a place that gives each test an empty database of its own.
type databases interface {
	// fresh creates a database and returns its URL.
	fresh(t testing.TB) string
}

// chosenServers starts the servers named by the environment. They stop when t
// ends.
func chosenServers(t *testing.T) map[string]*dbServer {
	t.Helper()
	chosen := map[string]*dbServer{}
	for name := range strings.SplitSeq(os.Getenv(testDatabases), ",") {
		switch name = strings.TrimSpace(name); name {
		case "":
		case postgresName:
			chosen[name] = startServer(t, postgresServer(t))
		case mysqlName:
			chosen[name] = startServer(t, mariaDBServer(t))
		default:
			t.Fatalf("%s names %q; it may name postgres and mysql", testDatabases, name)
		}
	}
	return chosen
}

// sqliteFiles gives each test a file.
type sqliteFiles struct{}

func (sqliteFiles) fresh(t testing.TB) string {
	t.Helper()
	return "sqlite://" + filepath.Join(t.TempDir(), "executor.db")
}

// serverKind is how to run one kind of database server.
type serverKind struct {
	scheme string
	admin  string                              // database that always exists
	create func(dir string) []string           // command that creates the data directory
	serve  func(dir string, port int) []string // command that runs the server
	owner  []string                            // users to run as where the tests run as root
}

// The password has every character that needs encoding in a URL.
const (
	serverUser     = "executor"
	serverPassword = "p@ss/w:rd?#%&"
)

func postgresServer(t *testing.T) serverKind {
	t.Helper()
	var bins []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin/initdb",
		"/opt/homebrew/opt/postgresql@*/bin/initdb",
		"/usr/local/opt/postgresql@*/bin/initdb",
	} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		bins = append(bins, found...)
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		bins = append(bins, path)
	}
	if len(bins) == 0 {
		t.Fatalf("%s names postgres: install PostgreSQL (Debian: apt-get install postgresql, macOS: brew install postgresql@16)", testDatabases)
	}
	bin := filepath.Dir(bins[0])
	return serverKind{
		scheme: "postgres",
		admin:  "postgres",
		owner:  []string{"postgres", "nobody"},
		create: func(dir string) []string {
			return []string{
				filepath.Join(bin, "initdb"),
				"--pgdata", filepath.Join(dir, "data"), "--username", serverUser,
				"--auth", "scram-sha-256", "--pwfile", filepath.Join(dir, "password"),
				"--encoding", "UTF8", "--locale", "C", "--no-sync",
			}
		},
		serve: func(dir string, port int) []string {
			return []string{
				filepath.Join(bin, "postgres"),
				"-D", filepath.Join(dir, "data"), "-p", strconv.Itoa(port),
				"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
				"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200",
			}
		},
	}
}

func mariaDBServer(t *testing.T) serverKind {
	t.Helper()
	find := func(name string, more ...string) string {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		for _, path := range more {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
		t.Fatalf("%s names mysql: install MariaDB (Debian: apt-get install mariadb-server, macOS: brew install mariadb)", testDatabases)
		return ""
	}
	daemon := find("mariadbd", "/usr/sbin/mariadbd")
	install := find("mariadb-install-db")
	return serverKind{
		scheme: "mysql",
		admin:  "mysql",
		owner:  []string{"mysql", "nobody"},
		create: func(dir string) []string {
			return []string{
				install, "--no-defaults",
				"--datadir=" + filepath.Join(dir, "data"), "--tmpdir=" + dir,
				"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve",
			}
		},
		serve: func(dir string, port int) []string {
			return []string{
				daemon, "--no-defaults",
				"--datadir=" + filepath.Join(dir, "data"), "--tmpdir=" + dir,
				"--socket=" + filepath.Join(dir, "s"), "--pid-file=" + filepath.Join(dir, "pid"),
				"--bind-address=127.0.0.1", "--port=" + strconv.Itoa(port), "--skip-name-resolve",
				"--init-file=" + filepath.Join(dir, "init.sql"), "--max-connections=200",
				"--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0",
			}
		},
	}
}

// dbServer is one running server on a loopback port.
type dbServer struct {
	kind  serverKind
	dir   string
	port  int
	names atomic.Int64
	args  []string // more arguments from the next start on

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// startServer creates a data directory and starts a server on it. The
// directory's path is short, because a socket's path is limited.
func startServer(t *testing.T, kind serverKind) *dbServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "executor-"+kind.scheme) //nolint:usetesting // t.TempDir's path is too long for a socket
	require.NoError(t, err)
	s := &dbServer{kind: kind, dir: dir, port: freePort(t)}
	t.Cleanup(func() {
		s.kill()
		_ = os.RemoveAll(dir)
	})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "password"), []byte(serverPassword+"\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "init.sql"), []byte(
		"CREATE USER IF NOT EXISTS '"+serverUser+"'@'127.0.0.1' IDENTIFIED BY '"+serverPassword+"';\n"+
			"GRANT ALL ON *.* TO '"+serverUser+"'@'127.0.0.1' WITH GRANT OPTION;\n"), 0o600))
	s.own(t)
	create := s.command(t, kind.create(dir))
	out, err := create.CombinedOutput()
	require.NoError(t, err, "create the data directory: %s", out)
	s.start(t)
	return s
}

// own gives the directory to the user the server runs as.
func (s *dbServer) own(t *testing.T) {
	t.Helper()
	credential := s.credential(t)
	if credential == nil {
		return
	}
	require.NoError(t, filepath.WalkDir(s.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, int(credential.Uid), int(credential.Gid))
	}))
}

// command runs argv as the server's user: PostgreSQL refuses to run as root.
// It is not ended by the test's context, because kill does that.
func (s *dbServer) command(t *testing.T, argv []string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if credential := s.credential(t); credential != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	}
	return cmd
}

func (s *dbServer) credential(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range s.kind.owner {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		require.NoError(t, err)
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		require.NoError(t, err)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Fatalf("the tests run as root, a database server must not: none of the users %v exists", s.kind.owner)
	return nil
}

// start runs the server and returns when it lets our user in.
func (s *dbServer) start(t *testing.T) {
	t.Helper()
	cmd := s.command(t, append(s.kind.serve(s.dir, s.port), s.args...))
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	_ = log.Close()

	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := s.answers(ctx)
		if err == nil {
			return
		}
		select {
		case <-done:
			out, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Fatalf("the %s server ended: %s", s.kind.scheme, out)
		case <-ctx.Done():
			out, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Fatalf("the %s server is not ready after a minute: %v\n%s", s.kind.scheme, err, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *dbServer) answers(ctx context.Context) error {
	store, err := connect(ctx, Config{URL: s.url(s.kind.admin)}, true)
	if err != nil {
		return err
	}
	return errors.Join(store.Ping(ctx), store.Close())
}

// kill ends the server as a crash would.
func (s *dbServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	// SIGQUIT is PostgreSQL's way to end its children too, without any
	// tidying up; MariaDB has no children.
	signal := syscall.SIGKILL
	if s.kind.scheme == "postgres" {
		signal = syscall.SIGQUIT
	}
	_ = s.cmd.Process.Signal(signal)
	<-s.done
	s.cmd = nil
}

func (s *dbServer) url(database string) string {
	u := url.URL{
		Scheme: s.kind.scheme,
		User:   url.UserPassword(serverUser, serverPassword),
		Host:   net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:   "/" + database,
	}
	return u.String()
}

func (s *dbServer) fresh(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", s.names.Add(1))
	admin, err := connect(t.Context(), Config{URL: s.url(s.kind.admin)}, true)
	require.NoError(t, err)
	defer func() { require.NoError(t, admin.Close()) }()
	_, err = admin.writes.ExecContext(t.Context(), "CREATE DATABASE "+name)
	require.NoError(t, err)
	return s.url(name)
}

func freePort(t *testing.T) int {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// sortedNames makes the order of subtests stable.
func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
