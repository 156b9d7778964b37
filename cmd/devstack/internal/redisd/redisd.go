// Package redisd gives the stack its Redis: a real redis-server process where
// one is installed, else a substitute in this process. It exists so that the
// demo runs on a machine without Redis too, while saying that it did.
package redisd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// Config says where Redis listens and keeps its data.
type Config struct {
	Port    int    // on 127.0.0.1
	Dir     string // data directory; empty: nothing is kept
	LogFile string
	// File is a configuration file to start from; empty: Redis's own defaults.
	File string
	// User and Password are how to ask the server whether it is up; empty: no login.
	User, Password string
	// Args are more options of redis-server, as on its command line; the last one
	// of a name counts.
	Args []string
}

// Server is a running Redis.
type Server struct {
	address string
	greet   string // what to send before asking whether the server is up
	spec    proc.Spec
	process *proc.Process // nil for the substitute
	mini    *miniredis.Miniredis
}

// Start runs redis-server from PATH, or miniredis where there is none.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	path, err := exec.LookPath("redis-server")
	if errors.Is(err, exec.ErrNotFound) {
		return startMini(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	return startReal(ctx, path, cfg)
}

func startReal(ctx context.Context, path string, cfg Config) (*Server, error) {
	var args []string
	if cfg.File != "" {
		args = append(args, cfg.File)
	}
	args = append(args,
		"--bind", "127.0.0.1", "--port", strconv.Itoa(cfg.Port),
		"--daemonize", "no", "--save", "",
		// Losing stream entries to eviction would lose jobs.
		"--maxmemory-policy", "noeviction",
	)
	if cfg.Dir == "" {
		args = append(args, "--appendonly", "no")
	} else {
		if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		dir, err := filepath.Abs(cfg.Dir)
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		args = append(args, "--dir", dir, "--appendonly", "yes", "--aof-load-truncated", "yes")
	}
	s := &Server{
		address: proc.Loopback(cfg.Port),
		spec: proc.Spec{
			Name: "redis-server", Path: path, Args: append(args, cfg.Args...), Env: os.Environ(), LogFile: cfg.LogFile,
		},
	}
	if cfg.User != "" {
		s.greet = "AUTH " + cfg.User + " " + cfg.Password + "\r\n"
	}
	if err := s.Restart(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Restart runs redis-server again after it was killed or stopped, on the same
// port and data. It is not for the substitute.
func (s *Server) Restart(ctx context.Context) error {
	process, err := proc.Start(s.spec)
	if err != nil {
		return err
	}
	if err := process.WaitReady(ctx, s.ping); err != nil {
		process.Kill()
		return err
	}
	s.process = process
	return nil
}

func startMini(cfg Config) (*Server, error) {
	mini := miniredis.NewMiniRedis()
	if err := mini.StartAddr(proc.Loopback(cfg.Port)); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	return &Server{address: mini.Addr(), mini: mini}, nil
}

// ping succeeds when Redis serves commands: it accepts connections, but refuses
// commands, while it loads its data. It speaks the protocol itself, because the
// Redis client logs each connection that is refused.
func (s *Server) ping(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(s.greet + "PING\r\n")); err != nil {
		return err
	}
	replies := bufio.NewReader(conn)
	if s.greet != "" {
		reply, err := replies.ReadString('\n')
		if err != nil {
			return err
		}
		if reply != "+OK\r\n" {
			return fmt.Errorf("redis answers the login with %q", reply)
		}
	}
	reply, err := replies.ReadString('\n')
	if err != nil {
		return err
	}
	if reply != "+PONG\r\n" {
		return fmt.Errorf("redis answers %q", reply)
	}
	return nil
}

// Address is the host:port.
func (s *Server) Address() string { return s.address }

// Substitute reports whether this is miniredis, which keeps nothing.
func (s *Server) Substitute() bool { return s.mini != nil }

// Process is the redis-server process, nil for the substitute.
func (s *Server) Process() *proc.Process { return s.process }

// Stop ends Redis, which first writes out what it has to keep.
func (s *Server) Stop(ctx context.Context) error {
	if s.mini != nil {
		s.mini.Close()
		return nil
	}
	select {
	case <-s.process.Done():
		return nil // killed, and not started again
	default:
		return s.process.Stop(ctx, 10*time.Second)
	}
}
