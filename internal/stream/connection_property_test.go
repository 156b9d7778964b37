package stream

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// drawConnection draws what a connection string can say. passwords are what its
// form allows as a password.
func drawConnection(t *rapid.T, passwords *rapid.Generator[string]) (c Connection, host, port string) {
	host = rapid.OneOf(
		rapid.StringMatching(`[a-z][a-z0-9-]{0,12}(\.[a-z0-9]{1,8}){0,3}`),
		rapid.SampledFrom([]string{"127.0.0.1", "::1", "fe80::1", "2001:db8::8:800:200c:417a", "::ffff:10.0.0.1"}),
	).Draw(t, "host")
	port = rapid.OneOf(rapid.Just(""), rapid.Map(rapid.IntRange(1, 65535), strconv.Itoa)).Draw(t, "port")
	c.Password = passwords.Draw(t, "password")
	c.Username = rapid.StringMatching(`([a-z][a-z0-9._-]{0,10})?`).Draw(t, "user")
	c.TLS = rapid.Bool().Draw(t, "tls")
	c.DB = rapid.IntRange(0, 20).Draw(t, "database")
	c.ClientName = rapid.StringMatching(`([a-zA-Z][a-z0-9-]{0,10})?`).Draw(t, "name")
	if ms := rapid.IntRange(0, 10_000).Draw(t, "timeout"); ms > 0 {
		c.DialTimeout = time.Duration(ms) * time.Millisecond
	}
	return c, host, port
}

// written is host and port as people write them.
func written(host, port string) string {
	switch {
	case port != "":
		return net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		return "[" + host + "]"
	default:
		return host
	}
}

// anyCase changes the case of letters: option names have none.
func anyCase(t *rapid.T, s string) string {
	b := []byte(s)
	for i := range b {
		if rapid.Bool().Draw(t, "upper") {
			b[i] = strings.ToUpper(string(b[i]))[0]
		}
	}
	return string(b)
}

// TestOptionsRoundTrip writes connections the way StackExchange.Redis reads
// them: split at every comma, each part trimmed, names in any case and before the
// first '=', the last of a name wins, endpoints anywhere.
func TestOptionsRoundTrip(t *testing.T) {
	t.Parallel()
	passwords := rapid.Map(rapid.StringMatching(`[ -+\--~äß✓=]{0,20}`), strings.TrimSpace)
	rapid.Check(t, func(rt *rapid.T) {
		c, host, port := drawConnection(rt, passwords)
		var parts []string
		option := func(name, value string) {
			pad := rapid.SampledFrom([]string{"", "", " ", "\t"}).Draw(rt, "pad")
			parts = append(parts, pad+anyCase(rt, name)+pad+"="+pad+value+pad)
		}
		if c.Password != "" {
			option("password", c.Password)
		}
		if c.Username != "" {
			option("user", c.Username)
		}
		truth := map[bool][]string{true: {"true", "True", "1", "yes", "ON"}, false: {"false", "FALSE", "0", "No", "off"}}
		if c.TLS || rapid.Bool().Draw(rt, "explicit") {
			option("ssl", rapid.SampledFrom(truth[c.TLS]).Draw(rt, "ssl"))
		}
		if c.TLS && rapid.Bool().Draw(rt, "other name") {
			c.ServerName = "redis.example"
			option("sslHost", c.ServerName)
		}
		if c.DB > 0 {
			option("defaultDatabase", strconv.Itoa(c.DB))
		}
		if c.DialTimeout > 0 {
			option("connectTimeout", strconv.FormatInt(c.DialTimeout.Milliseconds(), 10))
		}
		if c.ClientName != "" {
			option("name", c.ClientName)
		}
		for range rapid.IntRange(0, 3).Draw(rt, "settings of the .NET library") {
			option(rapid.SampledFrom([]string{"abortConnect", "allowAdmin", "keepAlive", "syncTimeout", "tiebreaker", "protocol"}).Draw(rt, "setting"), "x=y")
		}
		parts = rapid.Permutation(parts).Draw(rt, "order")
		parts = slices.Insert(parts, rapid.IntRange(0, len(parts)).Draw(rt, "place"), written(host, port))
		in := strings.Join(parts, rapid.SampledFrom([]string{",", ", ", ",,", " ,"}).Draw(rt, "separator"))

		c.Addr = net.JoinHostPort(host, cmp.Or(port, map[bool]string{true: "6380", false: "6379"}[c.TLS]))
		got, err := ParseConnection(in)
		require.NoError(rt, err, "%q", in)
		require.Equal(rt, c, got, "%q", in)

		// An option given twice: the last one counts.
		got, err = ParseConnection("password=old,defaultDatabase=99," + in + ",password=new,defaultDatabase=7")
		require.NoError(rt, err)
		require.Equal(rt, "new", got.Password)
		require.Equal(rt, 7, got.DB)
	})
}

func TestURLRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c, host, port := drawConnection(rt, rapid.String()) // percent-encoding leaves nothing out
		u := url.URL{Scheme: "redis", Host: written(host, port)}
		if c.TLS {
			u.Scheme = "rediss"
		}
		if c.Username != "" || c.Password != "" {
			u.User = url.UserPassword(c.Username, c.Password)
		}
		query := url.Values{}
		if c.DB > 0 && rapid.Bool().Draw(rt, "database in the path") {
			u.Path = "/" + strconv.Itoa(c.DB)
		} else if c.DB > 0 {
			query.Set("db", strconv.Itoa(c.DB))
		}
		if c.ClientName != "" {
			query.Set("client_name", c.ClientName)
		}
		if c.DialTimeout > 0 {
			query.Set("dial_timeout", c.DialTimeout.String())
		}
		u.RawQuery = query.Encode()

		c.Addr = net.JoinHostPort(host, cmp.Or(port, "6379"))
		got, err := ParseConnection(u.String())
		require.NoError(rt, err)
		require.Equal(rt, c, got)

		// What is printed is a URL of the same server, without the secret.
		shown, err := ParseConnection(got.String())
		require.NoError(rt, err)
		require.Equal(rt, []any{c.Addr, c.Username, c.DB, c.TLS}, []any{shown.Addr, shown.Username, shown.DB, shown.TLS})
		require.Equal(rt, c.Password != "", shown.Password == "***")
	})
}

// TestUnknownOptionsAreCountedNotShown: a mistyped option is ignored and warned
// about by its position, since its name may be half a password.
func TestUnknownOptionsAreCountedNotShown(t *testing.T) {
	t.Parallel()
	known := []string{"password=p", "user=u", "abortConnect=false", "name=n"}
	rapid.Check(t, func(rt *rapid.T) {
		unknown := rapid.SliceOfN(rapid.StringMatching(`[xyz]{3,8}=[xyz=]{0,8}`), 1, 4).Draw(rt, "unknown")
		parts := rapid.Permutation(slices.Concat([]string{"h"}, known, unknown)).Draw(rt, "parts")
		got, err := ParseConnection(strings.Join(parts, ","))
		require.NoError(rt, err)
		require.Equal(rt, []string{"h:6379", "p", "u", "n"}, []string{got.Addr, got.Password, got.Username, got.ClientName})

		var positions []string
		for i, part := range parts {
			if slices.Contains(unknown, part) {
				positions = append(positions, strconv.Itoa(i+1))
			}
		}
		require.Len(rt, got.Warnings, 1)
		require.Contains(rt, got.Warnings[0], "at position "+strings.Join(positions, ", ")+" ")
		for _, part := range unknown {
			require.NotContains(rt, got.Warnings[0], part)
		}
	})
}

// TestOnlyTheFirstEndpointIsUsed: a cluster or a replica is not followed, and
// that is said.
func TestOnlyTheFirstEndpointIsUsed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		hosts := rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,8}:[1-9][0-9]{0,3}`), 2, 5).Draw(rt, "hosts")
		got, err := ParseConnection(strings.Join(hosts, ",") + ",ssl=true")
		require.NoError(rt, err)
		require.Equal(rt, hosts[0], got.Addr)
		require.Len(rt, got.Warnings, 1)
		require.Contains(rt, got.Warnings[0], fmt.Sprintf("the first of %d endpoints", len(hosts)))
	})
}

// TestACommaEndsAPassword: there is no quoting, here as in StackExchange.Redis.
// What stands behind the comma is a setting or an endpoint of its own, and
// whoever wrote it hears of the rule.
func TestACommaEndsAPassword(t *testing.T) {
	t.Parallel()
	for _, in := range []string{`h,password=ab,cd`, `h,password="ab,cd"`, `h,password='ab,cd',ssl=false`, `h,password=ab,c=d`, `h,password=ab\,cd`} {
		t.Run(in, func(t *testing.T) {
			t.Parallel()
			got, err := ParseConnection(in)
			require.NoError(t, err)
			require.Equal(t, "h:6379", got.Addr)
			require.NotContains(t, got.Password, "d")
			require.Len(t, got.Warnings, 1)
			require.Contains(t, got.Warnings[0], "a comma cannot be part of a password")
			require.NotContains(t, got.Warnings[0], "cd")
		})
	}
}
