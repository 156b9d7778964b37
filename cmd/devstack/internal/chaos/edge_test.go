//go:build chaos

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// edge is the network between two parts of the system: a proxy that can be cut,
// slowed down and made to lose things.
type edge struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

func newEdge(t *testing.T, name string, port int, upstream string) *edge {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	e := &edge{t: t, proxy: toxiproxy.NewProxy(server, name, proc.Loopback(port), upstream)}
	require.NoError(t, e.proxy.Start())
	t.Cleanup(e.proxy.Stop)
	return e
}

// address is where the program under test finds the other side.
func (e *edge) address() string { return e.proxy.Listen }

// cut breaks all connections and refuses new ones, until join.
func (e *edge) cut() { e.proxy.Stop() }

func (e *edge) join() {
	e.t.Helper()
	require.NoError(e.t, e.proxy.Start())
}

// retarget leads to another server. What was connected is cut.
func (e *edge) retarget(upstream string) {
	e.t.Helper()
	e.cut()
	require.NoError(e.t, e.proxy.Update(&toxiproxy.Proxy{Listen: e.proxy.Listen, Upstream: upstream, Enabled: true}))
}

// cutAt breaks the connection, so many times, instead of passing on what contains
// the text.
func (e *edge) cutAt(direction, text string, times int) {
	e.t.Helper()
	e.toxic(cutAt, direction, map[string]any{"text": text, "times": times})
}

// wasCut is how often the cutter of that direction has struck so far.
func (e *edge) wasCut(direction string) int {
	e.t.Helper()
	wrapper := e.proxy.Toxics.GetToxic(toxicName(cutAt, direction))
	require.NotNil(e.t, wrapper, "there is no cutter")
	c, ok := wrapper.Toxic.(*cutter)
	require.True(e.t, ok)
	return int(min(c.used.Load(), c.Times))
}

func toxicName(kind, direction string) string { return kind + "-" + direction }

// Directions of toxics.
const (
	down = "down" // to the client: replies
	up   = "up"   // to the server: requests
)

// toxic adds a toxic by its type and attributes, as toxiproxy documents them, to
// what flows towards the client (down) or the server (up).
func (e *edge) toxic(kind, direction string, attributes map[string]any) {
	e.t.Helper()
	text, err := json.Marshal(map[string]any{
		"name": toxicName(kind, direction), "type": kind, "stream": direction + "stream", "toxicity": 1.0, "attributes": attributes,
	})
	require.NoError(e.t, err)
	_, err = e.proxy.Toxics.AddToxicJson(bytes.NewReader(text))
	require.NoError(e.t, err)
}

// heal removes all toxics.
func (e *edge) heal() { e.proxy.Toxics.ResetToxics(context.Background()) }

// cutter is a toxic that closes the connection instead of passing on a piece of
// data that contains a text.
type cutter struct {
	Text  string `json:"text"`
	Times int64  `json:"times"` // how often; later pieces pass
	used  atomic.Int64
}

// cutAt is the type of cutter.
const cutAt = "cut_at"

// swallower is a toxic that passes nothing on and ends no connection: whoever waits
// for what it has swallowed waits for ever. The timeout toxic of toxiproxy closes its
// connections when it is removed.
type swallower struct{}

// swallow is the type of swallower.
const swallow = "swallow"

// Pipe implements toxics.Toxic.
func (*swallower) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			if chunk == nil {
				stub.Close()
				return
			}
		}
	}
}

func registerToxics() {
	toxics.Register(cutAt, new(cutter))
	toxics.Register(swallow, new(swallower))
}

// Pipe implements toxics.Toxic.
func (c *cutter) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			switch {
			case chunk == nil:
				stub.Close()
				return
			case stub.Closed(): // cut: nothing more gets through
			case bytes.Contains(chunk.Data, []byte(c.Text)) && c.used.Add(1) <= c.Times:
				stub.Close()
			default:
				stub.Output <- chunk
			}
		}
	}
}
