// Package postgresd runs a throw-away PostgreSQL server. It exists because a
// database behind a network can be cut off, slowed down and killed, which the
// fault suite does, while SQLite cannot, and because Temporal itself runs on it
// where one machine is not enough.
package postgresd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

const (
	userName = "executor"
	password = "p@ss/w:rd?#%&" // every character that needs encoding in a URL
	// Database is the one created for the executor.
	Database = "executor"
)

// Config says where the server listens and keeps its data.
type Config struct {
	Port    int    // on 127.0.0.1
	Dir     string // data directory, created
	LogFile string
	// Durable makes each commit wait for the disk, as PostgreSQL does by itself,
	// for measurements. Without it a crash of the machine may lose everything.
	Durable bool
}

// Server is a running PostgreSQL.
type Server struct {
	cfg     Config
	bin     string
	owner   *syscall.Credential
	process *proc.Process
}

// Start creates a cluster in cfg.Dir and runs it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, bin: bin, owner: owner}
	if err := s.create(ctx); err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	if err := s.Restart(ctx); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, s.DatabaseURL(s.Address(), "postgres"))
	if err == nil {
		_, err = conn.Exec(ctx, "CREATE DATABASE "+Database)
		err = errors.Join(err, conn.Close(ctx))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("postgres: %w", err), s.Stop(ctx))
	}
	return s, nil
}

// programs is the directory of the newest installed server; Debian keeps it off
// PATH.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return "", errors.New("postgres: initdb was not found: run `scripts/need postgres`")
	}
	return filepath.Dir(slices.Max(found)), nil
}

// unprivileged is whom the server runs as where we are root, which it refuses.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil means as ourselves
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(errUID, errGID)
	}
	return nil, errors.New("postgres: it refuses to run as root, and there is no user postgres or nobody")
}

// create makes the cluster. Its directory lies in the system's place for
// temporary files if the server has another owner, who may not enter ours.
func (s *Server) create(ctx context.Context) error {
	if s.owner != nil {
		dir, err := os.MkdirTemp("", "postgres-")
		if err != nil {
			return err
		}
		if err := os.Chown(dir, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
			return err
		}
		s.cfg.Dir = dir
	} else if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	secret := filepath.Join(s.cfg.Dir, "password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		return err
	}
	if s.owner != nil {
		if err := os.Chown(secret, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), //nolint:gosec // G204: a fixed program
		"--pgdata", s.data(), "--username", userName, "--auth", "scram-sha-256", "--pwfile", secret,
		"--encoding", "UTF8", "--locale", "C", "--no-sync") // a half-written cluster is not used again
	cmd.Dir = s.cfg.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.cfg.Dir, "data") }

// Restart runs the server on its data after it was killed or stopped, and
// returns when it answers.
func (s *Server) Restart(ctx context.Context) error {
	durable := "off"
	if s.cfg.Durable {
		durable = "on"
	}
	process, err := proc.Start(proc.Spec{
		Name: "postgres", Path: filepath.Join(s.bin, "postgres"), Owner: s.owner, Dir: s.cfg.Dir,
		Env: append(os.Environ(), "LC_ALL=C"), LogFile: s.cfg.LogFile,
		Args: []string{
			"-D", s.data(), "-p", strconv.Itoa(s.cfg.Port),
			"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
			"-c", "fsync=" + durable, "-c", "full_page_writes=" + durable, "-c", "synchronous_commit=on",
		},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = process.WaitReady(ctx, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, s.DatabaseURL(s.Address(), "postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		process.Kill()
		return err
	}
	s.process = process
	return nil
}

// Pid is the process id of the server, the parent of all its processes.
func (s *Server) Pid() int { return s.process.Pid() }

// Address is the host:port.
func (s *Server) Address() string { return proc.Loopback(s.cfg.Port) }

// URL of the executor's database, as DATABASE_URL, by way of an address: the
// server's own or that of a proxy.
func (s *Server) URL(address string) string { return s.DatabaseURL(address, Database) }

// DatabaseURL is that of another database, which need not exist: the user may
// create it.
func (s *Server) DatabaseURL(address, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(userName, password), Host: address, Path: "/" + database}
	return u.String()
}

// Process is the server's first process, the parent of all others.
func (s *Server) Process() *proc.Process { return s.process }

// Kill ends the server with all its children and without tidying up.
func (s *Server) Kill() {
	_ = s.process.Signal(syscall.SIGQUIT)
	<-s.process.Done()
}

// Stop ends the server and removes its data.
func (s *Server) Stop(ctx context.Context) error {
	select {
	case <-s.process.Done():
	default:
		// SIGINT: it does not wait for its clients to leave.
		if err := s.process.Signal(syscall.SIGINT); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := s.process.ExitCode(ctx); err != nil {
			s.process.Kill()
		}
	}
	return os.RemoveAll(s.cfg.Dir)
}
