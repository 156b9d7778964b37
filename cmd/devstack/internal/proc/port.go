package proc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Ports are handed out from below the range systems use for outgoing
// connections (32768 upwards on Linux, 49152 on macOS), so that a port found
// free is still free a moment later, when the server it was found for binds it.
const (
	firstPort = 20000
	lastPort  = 31999
)

// Ports hands out loopback ports, none of its own choice twice. The zero value is
// ready.
type Ports struct {
	mu   sync.Mutex
	used map[int]bool
}

// Free returns a loopback port nobody listens on.
func (p *Ports) Free(ctx context.Context) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort+1) //nolint:gosec // G404: a port is no secret
		if !p.used[port] && IsFree(ctx, port) {
			p.take(port)
			return port, nil
		}
	}
	return 0, errors.New("no free loopback port found: too many servers are running")
}

// Prefer returns the wanted port where nobody listens on it, else another one
// with a sentence that says who holds the wanted one.
func (p *Ports) Prefer(ctx context.Context, want int, what string) (port int, notice string, err error) {
	if p.claim(ctx, want) {
		return want, "", nil
	}
	port, err = p.Free(ctx)
	if err != nil {
		return 0, "", err
	}
	holder := Holder(want)
	if holder == "" {
		holder = "another process"
	}
	return port, fmt.Sprintf("port %d is busy (%s): %s uses port %d instead", want, holder, what, port), nil
}

// claim takes a free port, handed out before or not: its user may have ended.
func (p *Ports) claim(ctx context.Context, port int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := IsFree(ctx, port)
	if free {
		p.take(port)
	}
	return free
}

func (p *Ports) take(port int) {
	if p.used == nil {
		p.used = map[int]bool{}
	}
	p.used[port] = true
}

// IsFree reports whether nobody listens on the loopback port. It asks by
// connecting, because a socket bound to find out could live on for a moment in
// a child process started at the same time, and make the port busy by itself.
func IsFree(ctx context.Context, port int) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", Loopback(port))
	if err != nil {
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	// Without a listener the kernel may connect a socket to itself.
	self := conn.LocalAddr().String() == conn.RemoteAddr().String()
	return conn.Close() == nil && self
}

// Loopback is the address of a port on this machine, for example 127.0.0.1:7233.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
