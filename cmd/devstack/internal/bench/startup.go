package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// startUp is how many seconds pass from nothing at all, an empty directory, until
// the first job has finished: Temporal, Redis and the LLM stand-in are started,
// then the executor, for which a job waits already.
func startUp(ctx context.Context, opts Options, n int) (_ float64, err error) {
	began := time.Now()
	w, err := newWorld(ctx, opts, fmt.Sprintf("startup-%d", n))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	job := contestant.NewJob("first", taskBytes, payloadBytes)
	if err := w.redis.XAdd(ctx, &redis.XAddArgs{Stream: agentStream, Values: job.Fields()}).Err(); err != nil {
		return 0, err
	}
	if _, err := w.executor(ctx, Executor, nil, "run"); err != nil {
		return 0, err
	}
	reader := reader{redis: w.redis, stream: updates, last: "0-0"}
	for {
		ids, err := reader.next(ctx)
		if err != nil {
			return 0, err
		}
		if len(ids) > 0 {
			seconds := time.Since(began).Seconds()
			w.say("start  from nothing to the first finished job      %5.2f s", seconds)
			return seconds, w.settle(ctx, group, agentStream)
		}
	}
}
