package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// tlsConfig is nil for a connection in clear text.
func (c Connection) tlsConfig(caFile string) (*tls.Config, error) {
	if !c.TLS {
		return nil, nil //nolint:nilnil // nil means clear text to the Redis library
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if caFile == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("REDIS_CA_FILE: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("REDIS_CA_FILE: no PEM certificate in %s", caFile)
	}
	return cfg, nil
}

// defaultDialTimeout bounds dialling and handshake where the connection string
// does not; it is the Redis library's own.
const defaultDialTimeout = 5 * time.Second

// tlsDialer opens connections with TLS and nothing else: there is no way from
// here to clear text. The library's own dialer does the same, but its errors do
// not tell a failed handshake from an unreachable server.
type tlsDialer struct {
	tcp     net.Dialer
	config  *tls.Config
	timeout time.Duration
	last    atomic.Pointer[handshakeError] // of the latest handshake, nil if it succeeded
}

func newTLSDialer(conn Connection, config *tls.Config) *tlsDialer {
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(conn.Addr)
	}
	timeout := cmp.Or(conn.DialTimeout, defaultDialTimeout)
	return &tlsDialer{
		// The library's own policy for connections in clear text.
		tcp: net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3,
		}},
		config:  config,
		timeout: timeout,
	}
}

func (d *tlsDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	tcp, err := d.tcp.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tcp, d.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = tcp.Close()
		failed := &handshakeError{err: err}
		d.last.Store(failed)
		return nil, failed
	}
	d.last.Store(nil)
	return conn, nil
}

// lastFailure is why there is no TLS connection, nil if the latest attempt
// succeeded or there was none.
func (d *tlsDialer) lastFailure() error {
	if failed := d.last.Load(); failed != nil {
		return failed
	}
	return nil
}

// handshakeError is a server that was reached and did not agree on TLS.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }

func (e *handshakeError) Unwrap() error { return e.err }
