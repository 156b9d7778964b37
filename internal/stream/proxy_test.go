package stream

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy stands between a client and Redis and can lose a reply: the command
// arrives and is executed, the connection ends after the reply's first byte.
type proxy struct {
	server string
	listen net.Listener

	mu    sync.Mutex
	armed string // cut the reply to the next request that contains this
	cuts  int
	conns map[net.Conn]struct{}
	work  sync.WaitGroup
}

func startProxy(t *testing.T, server string) *proxy {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{server: server, listen: l, conns: map[net.Conn]struct{}{}}
	p.work.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.cutAll()
		p.work.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listen.Addr().String() }

// loseReplyTo cuts the reply to the next request that contains the word.
func (p *proxy) loseReplyTo(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = strings.ToLower(word)
}

// lost is how many replies were lost so far.
func (p *proxy) lost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server) //nolint:noctx // ends with the proxy
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		p.mu.Unlock()
		link := &link{proxy: p, client: client, server: server}
		p.work.Go(link.requests)
		p.work.Go(link.replies)
	}
}

// link is one connection through the proxy.
type link struct {
	proxy          *proxy
	client, server net.Conn
	mu             sync.Mutex
	cut            bool
}

func (l *link) requests() {
	defer l.close()
	buf := make([]byte, 64<<10)
	for {
		n, err := l.client.Read(buf)
		if n > 0 {
			l.notice(buf[:n])
			if _, err := l.server.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *link) notice(request []byte) {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	if l.proxy.armed != "" && bytes.Contains(bytes.ToLower(request), []byte(l.proxy.armed)) {
		l.proxy.armed = ""
		l.mu.Lock()
		l.cut = true
		l.mu.Unlock()
	}
}

func (l *link) replies() {
	defer l.close()
	buf := make([]byte, 64<<10)
	for {
		n, err := l.server.Read(buf)
		if n > 0 {
			l.mu.Lock()
			cut := l.cut
			l.mu.Unlock()
			if cut {
				l.proxy.mu.Lock()
				l.proxy.cuts++
				l.proxy.mu.Unlock()
				_, _ = l.client.Write(buf[:1])
				return
			}
			if _, err := l.client.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *link) close() {
	_ = l.client.Close()
	_ = l.server.Close()
}
