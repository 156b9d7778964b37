package proc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports are handed out from below the range systems use for outgoing
// connections (32768 upwards on Linux, 49152 on macOS), so that a port found
// free is still free a moment later, when the server it was found for binds it.
const (
	firstPort = 20000
	lastPort  = 31999
)

// Ports hands out loopback ports, each at most once. The zero value is ready.
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

// Prefer returns the wanted port where it is free, else another one with a
// sentence that says who holds the wanted one.
func (p *Ports) Prefer(ctx context.Context, want int, what string) (port int, notice string, err error) {
	p.mu.Lock()
	if !p.used[want] && IsFree(ctx, want) {
		p.take(want)
		p.mu.Unlock()
		return want, "", nil
	}
	p.mu.Unlock()
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

func (p *Ports) take(port int) {
	if p.used == nil {
		p.used = map[int]bool{}
	}
	p.used[port] = true
}

// IsFree reports whether a server could listen on the loopback port now.
func IsFree(ctx context.Context, port int) bool {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", Loopback(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// Loopback is the address of a port on this machine, for example 127.0.0.1:7233.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
