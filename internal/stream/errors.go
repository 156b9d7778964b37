package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// The kinds of failure. Every error of this package that comes from Redis
// matches exactly one of them, or the context's own error, with errors.Is.
var (
	// ErrNoGroup: the stream or its consumer group does not exist, or vanished
	// during a blocked read. EnsureGroup puts it right.
	ErrNoGroup = errors.New("no such stream or consumer group")
	// ErrWrongType: the key holds something else than it should. Only a person
	// can put it right.
	ErrWrongType = errors.New("the key holds another kind of value")
	// ErrUnavailable: no connection, a lost reply, or a server that cannot serve
	// now (loading, out of memory or disk, a replica). The command may have been
	// executed. Try again later.
	ErrUnavailable = errors.New("Redis is not available") //nolint:staticcheck // Redis is a name
	// ErrDenied: credentials or access rights are missing.
	ErrDenied = errors.New("Redis denies access") //nolint:staticcheck // Redis is a name
	// ErrRefused: the server does not accept the command, for any other reason.
	ErrRefused = errors.New("Redis refused the command") //nolint:staticcheck // Redis is a name
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the Redis client is closed")
)

// Error says which operation failed, and how. Neither its text nor what it
// unwraps to contains a value of a job, an argument of a command, or a secret.
type Error struct {
	Op     string // what was attempted, for example "read jobs:agent"
	Kind   error  // one of the kinds above, context.Canceled or context.DeadlineExceeded
	Detail string // the server's error code or the network's message; may be empty
}

// Error implements error.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Op + ": " + e.Kind.Error()
	}
	return e.Op + ": " + e.Kind.Error() + ": " + e.Detail
}

// Unwrap returns the Kind.
func (e *Error) Unwrap() error { return e.Kind }

// fail types the error of one operation; nil stays nil.
func fail(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if typed := new(Error); errors.As(err, &typed) {
		return err
	}
	e := &Error{Op: op}
	var server redis.Error
	switch {
	case errors.As(err, &server):
		e.Detail, e.Kind = serverKind(server.Error())
	case ended(ctx) != nil:
		e.Kind = ended(ctx)
	case errors.Is(err, redis.ErrClosed):
		e.Kind = ErrClosed
	default:
		e.Kind, e.Detail = ErrUnavailable, networkDetail(err)
	}
	return e
}

// ended is ctx.Err, but does not wait for the context's own timer: the
// connection's deadline is the same instant and may be noticed first.
func ended(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// serverKind types an error reply. Of its text only the leading code is passed
// on, because the rest may repeat what was sent.
func serverKind(text string) (detail string, kind error) {
	code, rest, _ := strings.Cut(text, " ")
	switch code {
	case "NOGROUP", "UNBLOCKED":
		return code, ErrNoGroup
	case "WRONGTYPE":
		return code, ErrWrongType
	case "NOAUTH", "WRONGPASS":
		return code + ", check user and password in REDIS_CONNECTION", ErrDenied
	case "NOPERM":
		return code + deniedCommand(text) + ", check the access rights of the user in REDIS_CONNECTION", ErrDenied
	case "LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF", "OOM":
		return code, ErrUnavailable
	case "ERR":
		switch {
		case strings.HasPrefix(rest, "no such key"), strings.Contains(rest, "requires the key to exist"):
			return code, ErrNoGroup
		case strings.HasPrefix(rest, "max number of clients"):
			return "too many clients", ErrUnavailable
		case strings.HasPrefix(rest, "invalid password"), strings.HasPrefix(rest, "AUTH "):
			return code + ", check user and password in REDIS_CONNECTION", ErrDenied
		case strings.HasPrefix(rest, "The user executing the script can't"), strings.HasPrefix(rest, "ACL failure"):
			return "a script, check the access rights of the user in REDIS_CONNECTION", ErrDenied
		case strings.HasPrefix(rest, "DB index"):
			return "the database number in REDIS_CONNECTION does not exist", ErrRefused
		}
		return code, ErrRefused
	default:
		if !isErrorCode(code) {
			return "", ErrRefused
		}
		return code, ErrRefused
	}
}

// deniedCommand is the name of the command a NOPERM reply mentions.
func deniedCommand(text string) string {
	m := regexp.MustCompile(`'([a-z][a-z|-]{0,40})' command`).FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	return " for " + m[1]
}

func isErrorCode(s string) bool {
	return s != "" && len(s) <= 20 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// networkDetail is the text of errors that are known to hold nothing but
// addresses and system messages, and the type's name of all others: the
// library's parse errors quote the reply.
func networkDetail(err error) string {
	var (
		netErr    net.Error
		opErr     *net.OpError
		dnsErr    *net.DNSError
		certErr   *tls.CertificateVerificationError
		hostErr   x509.HostnameError
		alertErr  tls.AlertError
		systemErr *os.SyscallError
		handshake *handshakeError
	)
	switch {
	case errors.As(err, &hostErr): // within a certErr
		return hostErr.Error() + ", check the host or sslHost in REDIS_CONNECTION"
	case errors.As(err, &certErr):
		return certErr.Error() + ", check REDIS_CA_FILE"
	case errors.As(err, &alertErr):
		return alertErr.Error()
	case errors.As(err, &handshake):
		return "no answer to the TLS handshake, check that REDIS_CONNECTION names a port of the server that speaks TLS"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed by the server"
	case errors.As(err, &dnsErr):
		return dnsErr.Error()
	case errors.As(err, &opErr):
		return opErr.Error()
	case errors.As(err, &systemErr):
		return systemErr.Error()
	case errors.Is(err, redis.ErrPoolTimeout):
		return "all connections are busy"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &netErr) && netErr.Timeout():
		return "timeout"
	default:
		return fmt.Sprintf("%T", err)
	}
}
