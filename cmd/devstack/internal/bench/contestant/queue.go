package contestant

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
)

const (
	queueName = "bench" // asynq's queue
	taskType  = "job"
	// queueCheck is how long asynq sleeps when it finds nothing to do. Its default of
	// a second would be all there is to see at low load.
	queueCheck = 5 * time.Millisecond
	// queueStop is how long jobs under way may take when it stops.
	queueStop = 5 * time.Second
)

// Enqueue gives the queue a job. It takes the place of an entry in a stream, which
// the queue does not read. A second job with the same id is an error.
func Enqueue(ctx context.Context, c *asynq.Client, j Job) error {
	payload, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	_, err = c.EnqueueContext(ctx, asynq.NewTask(taskType, payload), asynq.Queue(queueName), asynq.TaskID(j.ID))
	if err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	return nil
}

// queue is a job queue without an engine, asynq on the same Redis. Its handler
// does what the executor does for a job, and again from the beginning where it
// fails.
type queue struct {
	streams streams
	llm     *llm
	rows    rows
}

func runQueue(ctx context.Context, cfg Config, s *site) error {
	q := queue{streams: newStreams(cfg.Name, cfg.Redis)}
	defer q.streams.close()
	var err error
	if q.llm, err = newLLM(cfg.LLM, cfg.Concurrency); err != nil {
		return err
	}
	defer q.llm.close()
	if q.rows, err = openRows(ctx, cfg.Database); err != nil {
		return err
	}
	defer q.rows.close()
	server := asynq.NewServer(asynq.RedisClientOpt{Addr: cfg.Redis}, asynq.Config{
		BaseContext:       func() context.Context { return ctx },
		Concurrency:       cfg.Concurrency,
		Queues:            map[string]int{queueName: 1},
		TaskCheckInterval: queueCheck,
		ShutdownTimeout:   queueStop,
		LogLevel:          asynq.WarnLevel,
	})
	mux := asynq.NewServeMux()
	mux.HandleFunc(taskType, q.handle)
	if err := server.Start(mux); err != nil {
		return fmt.Errorf("asynq: %w", err)
	}
	defer server.Shutdown()
	s.ready()
	<-ctx.Done()
	return nil
}

func (q queue) handle(ctx context.Context, t *asynq.Task) error {
	var j Job
	if err := json.Unmarshal(t.Payload(), &j); err != nil {
		return fmt.Errorf("%w: %w", asynq.SkipRetry, err)
	}
	answer, err := q.llm.ask(ctx, j)
	if err != nil {
		return err
	}
	if err := q.rows.persist(ctx, j, answer); err != nil {
		return err
	}
	return q.streams.publish(ctx, j, answer)
}
