package reach_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/reach"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for want, hosts := range map[reach.Reach][]string{
		reach.Host: {
			"", "localhost", "LOCALHOST.", "redis.localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "0.0.0.0", "::", "::ffff:127.0.0.1",
		},
		reach.Private: {
			"redis", "temporal.default.svc", "db.internal", "llm.local", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
			"fd12::1", "fe80::1%eth0", "169.254.1.1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
		},
		reach.Public: {
			"example.com", "ns.acct.tmprl.cloud", "redis.example.co.uk", "me.github.io", "github.io", "8.8.8.8", "172.32.0.1", "100.128.0.1",
			"2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808",
		},
	} {
		for _, host := range hosts {
			require.Equal(t, want, reach.Of(host), host)
		}
	}
}
