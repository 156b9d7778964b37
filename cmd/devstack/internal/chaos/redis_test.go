//go:build chaos

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// redisFaults are those of Redis and of the way to it.
func redisFaults() []fault {
	return slices.Concat(redisConnectionFaults(), redisMemoryFaults(), redisEntryFaults(), redisServiceFaults())
}

// redisConnectionFaults are those of the network between us and a healthy Redis.
func redisConnectionFaults() []fault {
	return []fault{
		{
			id: "F02", name: "connection cut while the reply to a read travels",
			run: func(w *world) {
				w.system()
				const times = 6
				w.bridgeRedis.cutAt(down, "jobId", times)
				// One by one, so that each cut hides one entry and not all of them.
				for range times {
					w.await(w.submit("agent", ""))
				}
				require.Equal(w.T, times, w.bridgeRedis.wasCut(down), "replies with entries that were lost")
				w.bridgeRedis.heal()
				w.heal()
				w.await(w.load(4)...)
			},
		},
	}
}

func redisMemoryFaults() []fault { return nil }

func redisEntryFaults() []fault { return nil }

func redisServiceFaults() []fault { return nil }

var _ = []any{bytes.Contains, context.Background, errors.Is, fmt.Sprint, io.EOF, os.Open, exec.Command, filepath.Join, strconv.Itoa, strings.Cut, syscall.SIGKILL, time.Second, redis.Nil, harness.Group, proc.Wait}
