package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/nodpt/executor/internal/job"
)

// What a person wants to know who looks for the reason why nothing works. All of
// it is done with the rights of a running executor, and none of it changes
// anything in Redis.

// Fault is the step at which a connection to the server ends.
type Fault string

// The faults, in the order of the steps.
const (
	FaultName        Fault = "name"        // the host's name has no address
	FaultDial        Fault = "dial"        // nobody listens there, or nobody answers
	FaultTLS         Fault = "tls"         // no agreement on TLS, most often because the server does not speak it
	FaultCertificate Fault = "certificate" // the server's certificate is of an authority that is not trusted, or out of date
	FaultHost        Fault = "host"        // the certificate is for another host
)

// DialError says why no connection to a server could be made.
type DialError struct {
	Fault  Fault
	Reason string // the system's own words; holds addresses and names only
}

// Error implements error.
func (e *DialError) Error() string { return e.Reason }

// Dial connects to the server of cfg, with TLS where cfg says so, and closes the
// connection again. It logs in to nothing. Its error is a *DialError, that of a
// configuration which Open refuses as well, or the context's own where that was
// cancelled.
func Dial(ctx context.Context, cfg Config) error {
	conn, err := ParseConnection(cfg.Connection)
	if err != nil {
		return err
	}
	secure, err := conn.tlsConfig(cfg.CAFile)
	if err != nil {
		return err
	}
	var made net.Conn
	if secure == nil {
		dialer := net.Dialer{Timeout: cmp.Or(conn.DialTimeout, defaultDialTimeout)}
		made, err = dialer.DialContext(ctx, "tcp", conn.Addr)
	} else {
		made, err = newTLSDialer(conn, secure).dial(ctx, "tcp", conn.Addr)
	}
	switch {
	case err == nil:
		_ = made.Close() // nothing was sent
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	default:
		return dialError(err)
	}
}

func dialError(err error) *DialError {
	var (
		name      *net.DNSError
		host      x509.HostnameError
		cert      *tls.CertificateVerificationError
		handshake *handshakeError
	)
	switch {
	case errors.As(err, &name):
		return &DialError{FaultName, "no address for " + name.Name + ": " + name.Err}
	case errors.As(err, &host): // within a cert
		return &DialError{FaultHost, host.Error()}
	case errors.As(err, &cert):
		return &DialError{FaultCertificate, cert.Err.Error()}
	case errors.As(err, &handshake):
		reason := "no answer to the TLS handshake"
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
			reason = op.Error()
		}
		return &DialError{FaultTLS, reason}
	default:
		return &DialError{FaultDial, networkDetail(err)}
	}
}

// Code is the first word of the server's reply within an error of this package,
// for example WRONGPASS, NOAUTH or LOADING; empty where the server did not reply.
func Code(err error) string {
	typed, ok := errors.AsType[*Error](err)
	if !ok {
		return ""
	}
	code, _, _ := strings.Cut(typed.Detail, ",")
	code, _, _ = strings.Cut(code, " ")
	if !isErrorCode(code) {
		return ""
	}
	return code
}

// ClosedByServer reports whether the server ended the connection instead of
// replying, which is what one does that expects TLS.
func ClosedByServer(err error) bool {
	typed, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	return typed.Detail == networkDetail(io.EOF) ||
		strings.HasSuffix(typed.Detail, syscall.ECONNRESET.Error()) || strings.HasSuffix(typed.Detail, syscall.EPIPE.Error())
}

// ServerInfo is what the server says about itself. Fields it leaves out, or that
// this program does not know how to read, are zero.
type ServerInfo struct {
	Version string // for example 7.0.15
	Mode    string // standalone, cluster or sentinel
	// Replica says that it copies another server, Primary, and takes no writes.
	Replica bool
	Primary string // host:port

	AppendOnly   string // the append-only file: on or off, empty where it is not told
	AppendFailed bool   // it is on, and could not be written
	Policy       string
	MaxMemory    int64 // bytes, 0: unlimited
}

// ServerInfo asks the server about itself.
func (c *Client) ServerInfo(ctx context.Context) (ServerInfo, error) {
	text, err := c.commands.Info(ctx).Result()
	if err != nil {
		return ServerInfo{}, fail(ctx, "ask Redis about itself", err)
	}
	said := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			said[name] = value
		}
	}
	info := ServerInfo{
		Version:      said["redis_version"],
		Mode:         said["redis_mode"],
		Replica:      said["role"] == "slave",
		AppendOnly:   map[string]string{"0": "off", "1": "on"}[said["aof_enabled"]],
		AppendFailed: said["aof_last_write_status"] == "err",
		Policy:       said["maxmemory_policy"],
	}
	info.MaxMemory, _ = strconv.ParseInt(said["maxmemory"], 10, 64)
	if info.Replica {
		info.Primary = net.JoinHostPort(said["master_host"], said["master_port"])
	}
	return info, nil
}

// Right is something the executor does in Redis.
type Right struct {
	Command []string // for example XACK jobs:agent executor-group 0-0
	Rule    string   // the part of an access rule that grants it, for example +xack ~jobs:*
}

// rights are all commands of a bridge and of workers, those within scripts too,
// once for each pattern of keys. The arguments are examples.
func (c *Client) rights(chatList string) []Right {
	var all []Right
	add := func(rule string, command ...string) {
		all = append(all, Right{Command: command, Rule: rule})
	}
	const (
		consumer = "doctor"
		own      = "{executor}:doctor"
		total    = "{executor:total}:doctor"
		jobs     = " ~jobs:*"
	)
	add("+ping", "PING")
	add("+time", "TIME")
	add("+info", "INFO")
	add("+client|setname", "CLIENT", "SETNAME", consumer)
	for _, role := range job.Roles() {
		s := role.Stream()
		add("+xreadgroup"+jobs, "XREADGROUP", "GROUP", c.group, consumer, "COUNT", "1", "STREAMS", s, ">")
		add("+xautoclaim"+jobs, "XAUTOCLAIM", s, c.group, consumer, "0", "0")
		add("+xclaim"+jobs, "XCLAIM", s, c.group, consumer, "0", "0-0")
		add("+xack"+jobs, "XACK", s, c.group, "0-0")
		add("+xpending"+jobs, "XPENDING", s, c.group)
		add("+xrange"+jobs, "XRANGE", s, "0-0", "0-0")
		add("+xlen"+jobs, "XLEN", s)
		add("+xinfo|stream"+jobs, "XINFO", "STREAM", s)
		add("+xinfo|groups"+jobs, "XINFO", "GROUPS", s)
		add("+xinfo|consumers"+jobs, "XINFO", "CONSUMERS", s, c.group)
		add("+xgroup|create"+jobs, "XGROUP", "CREATE", s, c.group, "0", "MKSTREAM")
		add("+xgroup|delconsumer"+jobs, "XGROUP", "DELCONSUMER", s, c.group, consumer)
		add("+eval +evalsha"+jobs, "EVALSHA", "0", "1", s)
		add("+xadd +xlen ~jobs:*:dead", "XADD", DeadStream(s), "*", "k", "v")
		add("+get +set ~{jobs:*:dead}:seen:*", "SET", "{"+DeadStream(s)+"}:seen:doctor", "v")
		add("+eval +evalsha ~{jobs:*:dead}:seen:*", "EVALSHA", "0", "1", "{"+DeadStream(s)+"}:seen:doctor")
	}
	add("+xadd +xlen ~"+Updates, "XADD", Updates, "*", "k", "v")
	add("+eval +evalsha ~"+Updates, "EVALSHA", "0", "1", Updates)
	add("+get +set ~{"+Updates+"}:pub:*", "SET", "{"+Updates+"}:pub:doctor", "v")
	add("+get +set ~{"+Updates+"}:pub:*", "GET", "{"+Updates+"}:pub:doctor")
	add("+eval +evalsha ~{"+Updates+"}:pub:*", "EVALSHA", "0", "1", "{"+Updates+"}:pub:doctor")
	add("+get +set ~{executor}:*", "GET", own)
	add("+get +set ~{executor}:*", "SET", own, "v")
	add("+eval +evalsha ~{executor}:*", "EVALSHA", "0", "1", own)
	add("+get +set ~{executor:total}:epoch", "GET", "{executor:total}:epoch")
	add("+get +set ~{executor:total}:epoch", "SET", "{executor:total}:epoch", "v")
	const sorted = "+zadd +zrem +zrange +zcard ~{executor:total}:*"
	add(sorted, "ZADD", total, "1", "m")
	add(sorted, "ZREM", total, "m")
	add(sorted, "ZRANGE", total, "0", "0")
	add(sorted, "ZCARD", total)
	add("+eval +evalsha ~{executor:total}:*", "EVALSHA", "0", "1", total)
	add("+publish +subscribe &executor:*", "PUBLISH", "executor:doctor", "m")
	add("+publish +subscribe &executor:*", "SUBSCRIBE", "executor:doctor")
	add("+publish &"+ChatChannel, "PUBLISH", ChatChannel, "m")
	if chatList != "" {
		add("+xadd +xlen ~"+job.Chat.Stream(), "XADD", job.Chat.Stream(), "*", "k", "v")
		add("+lpop ~"+chatList, "LPOP", chatList)
		add("+eval +evalsha ~"+chatList, "EVALSHA", "0", "1", chatList)
	}
	return all
}

// askRights asks Redis about one command after the other, of which it executes
// none. The commands come as lengths and words.
const askRights = `
local refused, i, n = {}, 1, 0
while i <= #ARGV do
  local words = {}
  for k = 1, tonumber(ARGV[i]) do words[k] = ARGV[i + k] end
  if not redis.acl_check_cmd(unpack(words)) then refused[#refused + 1] = n end
  i, n = i + tonumber(ARGV[i]) + 1, n + 1
end
return refused`

// MissingRights returns what the user of the connection may not do and an
// executor must, each rule once. chatList is the name of the legacy chat list;
// empty means that it is off. A user who may not run scripts gets an error that
// matches ErrDenied: every right is checked by one.
func (c *Client) MissingRights(ctx context.Context, chatList string) ([]Right, error) {
	const op = "ask for access rights"
	all := c.rights(chatList)
	var args []any
	for _, r := range all {
		args = append(args, len(r.Command))
		for _, word := range r.Command {
			args = append(args, word)
		}
	}
	// The key is not touched. It is one that an executor may use in scripts.
	reply, err := c.commands.Eval(ctx, askRights, []string{"{executor}:doctor"}, args...).Int64Slice()
	if err != nil {
		return nil, fail(ctx, op, err)
	}
	var missing []Right
	for _, i := range reply {
		if i < 0 || int(i) >= len(all) {
			return nil, fail(ctx, op, replyError{"number of a command"})
		}
		right := all[i]
		if !slices.ContainsFunc(missing, func(m Right) bool { return m.Rule == right.Rule }) {
			missing = append(missing, right)
		}
	}
	return missing, nil
}

// GroupExists reports whether a stream has the group of this client.
func (c *Client) GroupExists(ctx context.Context, stream string) (bool, error) {
	groups, err := c.commands.XInfoGroups(ctx, stream).Result()
	if err = fail(ctx, "look for the group of "+stream, err); errors.Is(err, ErrNoGroup) {
		return false, nil
	}
	return slices.ContainsFunc(groups, func(g redis.XInfoGroup) bool { return g.Name == c.group }), err
}

// LeaseHolder is the consumer that holds the lease of that name, empty where
// nobody does.
func (c *Client) LeaseHolder(ctx context.Context, name string) (string, error) {
	holder, err := c.commands.Get(ctx, "{executor}:lease:"+name).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return holder, fail(ctx, "ask who holds the lease "+name, err)
}

// AnnouncedStore is the identity of the result store that the living processes
// use, empty where none has announced one in the last half a minute.
func (c *Client) AnnouncedStore(ctx context.Context) (string, error) {
	id, err := c.commands.Get(ctx, "{executor}:store").Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return id, fail(ctx, "ask which result store is in use", err)
}

// StoreAnnouncementLasts is how long a result store stays announced after the
// last process that uses it has ended.
const StoreAnnouncementLasts = storeTTL
