package stream

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseConnection(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in       string
		want     Connection
		warnings int
	}{
		{in: "localhost", want: Connection{Addr: "localhost:6379"}},
		{in: "  localhost:7000 ", want: Connection{Addr: "localhost:7000"}},
		{in: "[::1]", want: Connection{Addr: "[::1]:6379"}},
		{in: "[::1]:7000", want: Connection{Addr: "[::1]:7000"}},
		{in: "fe80::1", want: Connection{Addr: "[fe80::1]:6379"}},

		{in: "redis://h", want: Connection{Addr: "h:6379"}},
		{in: "redis://h:1/3", want: Connection{Addr: "h:1", DB: 3}},
		{in: "redis://h/3/", want: Connection{Addr: "h:6379", DB: 3}},
		{in: "REDISS://h", want: Connection{Addr: "h:6379", TLS: true}},
		{in: "redis://:p%40ss%2Cw@h", want: Connection{Addr: "h:6379", Password: "p@ss,w"}},
		{in: "redis://u:p@[::1]:9", want: Connection{Addr: "[::1]:9", Username: "u", Password: "p"}},
		{in: "rediss://u@h", want: Connection{Addr: "h:6379", Username: "u", TLS: true}},
		{
			in:   "redis://h?db=2&client_name=me&dial_timeout=3s&pool_size=9",
			want: Connection{Addr: "h:6379", DB: 2, ClientName: "me", DialTimeout: 3 * time.Second},
		},
		{in: "rediss://h?skip_verify=true", want: Connection{Addr: "h:6379", TLS: true}, warnings: 1},
		{in: "redis://h?what=1&else=2", want: Connection{Addr: "h:6379"}, warnings: 1},
		{in: "redis://:secret#1@h", want: Connection{}, warnings: -1},
		{in: "redis://h#x", want: Connection{Addr: "h:6379"}, warnings: 1},

		{in: "h,password=a=b==", want: Connection{Addr: "h:6379", Password: "a=b=="}},
		{in: "h , PassWord = x , User=u", want: Connection{Addr: "h:6379", Username: "u", Password: "x"}},
		{in: "h,ssl=True", want: Connection{Addr: "h:6380", TLS: true}},
		{in: "h:6379,ssl=true,sslHost=other", want: Connection{Addr: "h:6379", TLS: true, ServerName: "other"}},
		{in: "h,ssl=false", want: Connection{Addr: "h:6379"}},
		{in: "password=x,h:1", want: Connection{Addr: "h:1", Password: "x"}},
		{in: "password=://,h:1", want: Connection{Addr: "h:1", Password: "://"}},
		{
			in:   "h,defaultDatabase=1,connectTimeout=2500,name=n,abortConnect=false,syncTimeout=1,keepAlive=3,",
			want: Connection{Addr: "h:6379", DB: 1, DialTimeout: 2500 * time.Millisecond, ClientName: "n"},
		},
		{in: "a:1,b:2,c", want: Connection{Addr: "a:1"}, warnings: 1},
		{in: "h,what=1,else=2", want: Connection{Addr: "h:6379"}, warnings: 1},
		{in: "h,channelPrefix=x,serviceName=m,proxy=Twemproxy", want: Connection{Addr: "h:6379"}, warnings: 3},

		// Refused, with a reason.
		{in: "", warnings: -1},
		{in: ":6379", warnings: -1},
		{in: "h:", warnings: -1},
		{in: "h:0", warnings: -1},
		{in: "h:65536", warnings: -1},
		{in: "h:6379/1", warnings: -1},
		{in: "h:-1", warnings: -1},
		{in: "a b", warnings: -1},
		{in: "a:b:c", warnings: -1},
		{in: "[h]:1", warnings: -1},
		{in: "[::1]x", warnings: -1},
		{in: "user:pass@h:1", warnings: -1},
		{in: "!/run/redis.sock", warnings: -1},
		{in: "http://h", warnings: -1},
		{in: "unix:///run/redis.sock", warnings: -1},
		{in: "redis://", warnings: -1},
		{in: "redis://h/x", warnings: -1},
		{in: "redis://:p/w@h", warnings: -1},
		{in: "redis://h?db=x", warnings: -1},
		{in: "redis://h?dial_timeout=soon", warnings: -1},
		{in: "redis://h?dial_timeout=-1s", warnings: -1},
		{in: "redis://h?%zz", warnings: -1},
		{in: "password=x", warnings: -1},
		{in: "h,ssl=perhaps", warnings: -1},
		{in: "h,defaultDatabase=-1", warnings: -1},
		{in: "h,connectTimeout=0", warnings: -1},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			t.Parallel()
			got, err := ParseConnection(tt.in)
			if tt.warnings < 0 {
				require.ErrorContains(t, err, "REDIS_CONNECTION: ")
				require.Zero(t, got)
				return
			}
			require.NoError(t, err)
			require.Len(t, got.Warnings, tt.warnings, "%q", got.Warnings)
			got.Warnings = nil
			require.Equal(t, tt.want, got)
		})
	}
}

func TestConnectionPrintsWithoutItsPassword(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want string }{
		{"h", "redis://h:6379/0"},
		{"rediss://u@h:1/2", "rediss://u@h:1/2"},
		{"h:1,password=geheim", "redis://:***@h:1/0"},
		{"h:1,user=u,password=geheim,ssl=true", "rediss://u:***@h:1/0"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			t.Parallel()
			c, err := ParseConnection(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, c.String())
			encoded, err := json.Marshal(c)
			require.NoError(t, err)
			for _, text := range []string{fmt.Sprintf("%v %+v %#v %s", c, c, c, &c), string(encoded)} {
				require.NotContains(t, text, "geheim")
			}
		})
	}
}

// Whatever the string looks like, parsing neither panics nor repeats a part of
// it that could be a password.
func TestParseConnectionNeverLeaks(t *testing.T) {
	t.Parallel()
	// Characters outside of every message, so that finding one is a leak.
	secrets := rapid.StringMatching(`[ÄÖÜäöü]{6,20}`)
	shapes := rapid.SampledFrom([]string{
		"h,password=%s", "h:1,password=%s,ssl=nope", "password=%s", "password=%s,h:x", "h,%s=1", "h,%s",
		"h,defaultDatabase=%s", "h,connectTimeout=%s", "h,ssl=%s", "h:%s", "a:b:%s", "[%s]:1", "[::1]%s",
		"redis://:%s@h", "redis://:%s@h:x", "redis://u:%s@", "redis://:%s/x@h", "redis://:%%zz%s@h",
		"redis://h/%s", "redis://h?db=%s", "redis://h?dial_timeout=%s", "redis://h?%s=1", "redis://h?%%zz%s",
		"redis://h#%s", "http://:%s@h", "%s://h", "user:%s@h:1", "user:%s@h", "h/%s",
	})
	rapid.Check(t, func(t *rapid.T) {
		secret := secrets.Draw(t, "secret")
		c, err := ParseConnection(fmt.Sprintf(shapes.Draw(t, "shape"), secret))
		if err != nil {
			require.NotContains(t, err.Error(), secret)
			return
		}
		require.NotContains(t, strings.Join(c.Warnings, "\n"), secret)
		require.NotContains(t, fmt.Sprintf("%v %+v %#v", c, c, c), secret)
	})
}

func TestParseConnectionNeverPanics(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOf(rapid.OneOf(
			rapid.String(),
			rapid.SampledFrom([]string{
				"redis://", "rediss://", ",", "=", ":", "@", "/", "?", "#", "[", "]", "%", "password=", "ssl=",
				"defaultDatabase=", "connectTimeout=", "host", "6379", "::1", "db=", "&", "true",
			}),
		)).Draw(t, "parts")
		c, err := ParseConnection(strings.Join(parts, ""))
		if err == nil {
			require.NotEmpty(t, c.Addr)
			require.GreaterOrEqual(t, c.DB, 0)
		}
	})
}
