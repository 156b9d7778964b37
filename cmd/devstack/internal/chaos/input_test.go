//go:build chaos

package chaos

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// TestInput holds the row of the catalogue of bad input that is about how fast
// things go, and so needs the executor that ships and the machine for itself: it
// is not parallel. All other rows are end-to-end tests.
func TestInput(t *testing.T) {
	flood := fault{
		id: "B55", name: "1,000 entries in a row that are no jobs",
		setup: setup{plain: true},
		run: func(w *world) {
			w.system()
			const poison = 1000
			began := time.Now()
			pipe := w.Redis.Pipeline()
			added := make([]*redis.StringCmd, poison)
			for i := range added {
				added[i] = pipe.XAdd(w.T.Context(), &redis.XAddArgs{Stream: "jobs:agent", Values: []string{
					"jobId", "p" + strconv.Itoa(i), "userId", "u1", "payload", harness.Text("payload"),
				}})
			}
			_, err := pipe.Exec(w.T.Context())
			require.NoError(w.T, err)
			submitted := time.Now()
			w.submit("agent", "")
			w.submit("manager", "")
			for _, a := range added {
				w.reject("agent", a.Val())
			}
			w.LLM.Await("the jobs behind have started", func(s harness.Stats) bool { return s.Calls == 2 })
			started := time.Since(submitted)
			require.Less(w.T, started, 5*time.Second, "jobs behind the poison")
			w.Wait("all rejected", func(ctx context.Context) error {
				n, err := w.Redis.XLen(ctx, "jobs:agent:dead").Result()
				if err == nil && n < poison {
					err = fmt.Errorf("%d of %d", n, poison)
				}
				return err
			})
			w.remark("%.0f rejected a second; jobs behind them start after %.1f s", poison/time.Since(began).Seconds(), started.Seconds())
			w.heal()
		},
	}
	t.Run(flood.id, flood.play)
}
