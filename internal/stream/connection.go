package stream

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Connection is where the Redis server is and how to log in. Printing it does
// not show the password.
type Connection struct {
	Addr        string        // host:port
	Username    string        // empty: the default user
	Password    string        `json:"-"`
	DB          int           // number of the database
	TLS         bool          // certificates are always verified
	ServerName  string        // name expected in the certificate; empty: the host of Addr
	ClientName  string        // empty: not given
	DialTimeout time.Duration // 0: the library's default of 5 s
	Warnings    []string      // what was ignored, without any value of it
}

const (
	defaultPort = "6379"
	// defaultTLSPort is what StackExchange.Redis assumes with ssl=true; a rediss://
	// URL keeps 6379.
	defaultTLSPort = "6380"
)

// String is the connection without its password, for logs.
func (c Connection) String() string {
	scheme, user := "redis", ""
	if c.TLS {
		scheme = "rediss"
	}
	switch {
	case c.Password != "":
		user = c.Username + ":***@"
	case c.Username != "":
		user = c.Username + "@"
	}
	return fmt.Sprintf("%s://%s%s/%d", scheme, user, c.Addr, c.DB)
}

// GoString keeps the password out of %#v as well.
func (c Connection) GoString() string { return c.String() }

// ParseConnection reads a connection string in one of three forms:
//
//	host, host:port, [ipv6]:port
//	redis://user:password@host:port/db and rediss:// for TLS, with ?db=,
//	    ?client_name= and ?dial_timeout= (a duration such as 3s)
//	host:port,password=…,user=…,ssl=true,…   (StackExchange.Redis)
//
// The port defaults to 6379, in the last form to 6380 when ssl=true. Of the keys
// of the last form, which are case-insensitive, these have an effect: password,
// user, ssl, sslHost, defaultDatabase, connectTimeout (milliseconds) and name.
// Those that only tune the .NET library are ignored; unknown ones, and all
// endpoints but the first, are ignored with a warning. A password may contain
// '=' but no comma there, and must be percent-encoded in a URL.
//
// Errors and warnings never repeat any part of s, because any part may be a
// mistyped password.
func ParseConnection(s string) (Connection, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Connection{}, connErr("it is empty; use host:port")
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok && !strings.ContainsAny(scheme, ",=") {
		return parseURL(s)
	}
	return parseOptions(s)
}

func connErr(reason string) error {
	return errors.New("REDIS_CONNECTION: " + reason)
}

func parseURL(s string) (Connection, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Connection{}, connErr("not a valid URL; percent-encode special characters of the password")
	}
	var c Connection
	switch strings.ToLower(u.Scheme) {
	case "redis":
	case "rediss":
		c.TLS = true
	default:
		return Connection{}, connErr("use a URL that begins with redis:// or rediss://")
	}
	if c.Addr, err = endpoint(u.Host, defaultPort); err != nil {
		return Connection{}, err
	}
	c.Username = u.User.Username()
	c.Password, _ = u.User.Password()
	if db := strings.Trim(u.Path, "/"); db != "" {
		if c.DB, err = database(db); err != nil {
			return Connection{}, err
		}
	}
	if u.Fragment != "" {
		c.warn("the part after # was ignored; percent-encode special characters of the password")
	}
	if err := c.applyQuery(u.RawQuery); err != nil {
		return Connection{}, err
	}
	return c, nil
}

func (c *Connection) applyQuery(raw string) error {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return connErr("the part after ? is not a valid URL query")
	}
	unknown := 0
	for key := range query {
		value := query.Get(key)
		switch strings.ToLower(key) {
		case "db":
			c.DB, err = database(value)
		case "client_name":
			c.ClientName = value
		case "dial_timeout":
			c.DialTimeout, err = time.ParseDuration(value)
			if err != nil || c.DialTimeout <= 0 {
				err = connErr("dial_timeout must be a positive duration such as 3s")
			}
		case "skip_verify":
			c.warn("skip_verify was ignored: certificates are always verified; use REDIS_CA_FILE")
		case "protocol", "max_retries", "min_retry_backoff", "max_retry_backoff", "read_timeout",
			"write_timeout", "pool_fifo", "pool_size", "pool_timeout", "min_idle_conns",
			"max_idle_conns", "max_active_conns", "conn_max_idle_time", "conn_max_lifetime":
			// Ours to set: the guarantees depend on most of them.
		default:
			unknown++
		}
		if err != nil {
			return err
		}
	}
	if unknown > 0 {
		c.warn("%d unknown settings after ? were ignored", unknown)
	}
	return nil
}

// parseOptions reads StackExchange.Redis syntax, of which a plain host:port is
// the shortest form.
func parseOptions(s string) (Connection, error) {
	var (
		c       Connection
		first   string
		more    int
		ignored []string
	)
	for i, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		key, value, isOption := strings.Cut(part, "=")
		switch {
		case isOption:
			known, err := c.applyOption(strings.TrimSpace(key), strings.TrimSpace(value))
			if err != nil {
				return Connection{}, err
			}
			if !known {
				ignored = append(ignored, strconv.Itoa(i+1))
			}
		case first == "":
			first = part
		default:
			more++
		}
	}
	if first == "" {
		return Connection{}, connErr("it names no host; use host:port, before any settings")
	}
	port := defaultPort
	if c.TLS {
		port = defaultTLSPort
	}
	var err error
	if c.Addr, err = endpoint(first, port); err != nil {
		return Connection{}, err
	}
	if more > 0 {
		c.warn("only the first of %d endpoints is used (a comma cannot be part of a password)", more+1)
	}
	if len(ignored) > 0 {
		c.warn("unknown settings were ignored, at position %s (a comma cannot be part of a password)",
			strings.Join(ignored, ", "))
	}
	return c, nil
}

// applyOption reports whether the key is one of StackExchange.Redis.
func (c *Connection) applyOption(key, value string) (known bool, err error) {
	switch strings.ToLower(key) {
	case "password":
		c.Password = value
	case "user":
		c.Username = value
	case "ssl":
		c.TLS, err = boolean(value)
	case "sslhost":
		c.ServerName = value
	case "defaultdatabase":
		c.DB, err = database(value)
	case "connecttimeout":
		ms, convErr := strconv.Atoi(value)
		if convErr != nil || ms <= 0 || ms > int(time.Hour.Milliseconds()) {
			return true, connErr("connectTimeout must be a positive number of milliseconds")
		}
		c.DialTimeout = time.Duration(ms) * time.Millisecond
	case "name":
		c.ClientName = value
	case "channelprefix":
		c.warn("channelPrefix was ignored: channel names are used as they are")
	case "servicename":
		c.warn("serviceName was ignored: Sentinel is not supported, name the server itself")
	case "proxy", "tunnel":
		c.warn("%s was ignored: it is not supported", strings.ToLower(key))
	case "abortconnect", "allowadmin", "asynctimeout", "checkcertificaterevocation", "configchannel",
		"configcheckseconds", "connectretry", "defaultversion", "heartbeatinterval", "highintegrity",
		"includedetailinexceptions", "includeperformancecountersinexceptions", "keepalive",
		"preserveasyncorder", "protocol", "resolvedns", "responsetimeout", "setlib", "sslprotocols",
		"synctimeout", "tiebreaker", "version", "writebuffer":
		// They tune the .NET library and mean nothing here.
	default:
		return false, nil
	}
	return true, err
}

// boolean reads what StackExchange.Redis takes for one.
func boolean(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	default:
		return false, connErr("ssl must be true or false")
	}
}

func (c *Connection) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// endpoint completes host, host:port, [ipv6], [ipv6]:port or a bare IPv6 address
// with the default port.
func endpoint(s, port string) (string, error) {
	host := s
	switch {
	case strings.HasPrefix(s, "["):
		inner, rest, ok := strings.Cut(s[1:], "]")
		if !ok || net.ParseIP(inner) == nil || (rest != "" && !strings.HasPrefix(rest, ":")) {
			return "", connErr("the host is not a valid IPv6 address in brackets")
		}
		host = inner
		if rest != "" {
			port = rest[1:]
		}
	case strings.Count(s, ":") == 1:
		host, port, _ = strings.Cut(s, ":")
	case strings.Contains(s, ":"):
		if net.ParseIP(s) == nil {
			return "", connErr("the host is not valid; use host:port")
		}
	}
	if host == "" || strings.ContainsAny(host, " \t\r\n/@\\\"'!?#") {
		return "", connErr("the host is missing or not valid; use host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", connErr("the port must be a number from 1 to 65535")
	}
	return net.JoinHostPort(host, port), nil
}

func database(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, connErr("the database must be a number, usually from 0 to 15")
	}
	return int(n), nil
}
