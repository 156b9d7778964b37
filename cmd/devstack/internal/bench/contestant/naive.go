package contestant

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"golang.org/x/sync/errgroup"
)

// Names of the naive design's queue and workflow.
const (
	NaiveQueue    = "bench-naive"
	NaiveWorkflow = "NaiveWorkflow"
)

// naiveStarts is how many workflows are started at once; the executor's number.
const naiveStarts = 16

// naive is the straightforward design: one process that reads a stream, starts a
// workflow for each entry, and works on it in four activities, one for each thing
// to do. It is as durable as the executor while nothing fails: an entry whose
// start fails, and one whose job is a duplicate, stay pending for ever.
type naive struct {
	streams streams
	llm     *llm
	rows    rows
	client  client.Client
}

// naiveInput is the argument of the workflow.
type naiveInput struct {
	Job     Job    `json:"job"`
	EntryID string `json:"entryId"`
}

func runNaive(ctx context.Context, cfg Config, s *site) error {
	n := &naive{streams: newStreams(cfg.Name, cfg.Redis)}
	defer n.streams.close()
	var err error
	if n.llm, err = newLLM(cfg.LLM, cfg.Concurrency); err != nil {
		return err
	}
	defer n.llm.close()
	if n.rows, err = openRows(ctx, cfg.Database); err != nil {
		return err
	}
	defer n.rows.close()
	if n.client, err = dial(ctx, cfg); err != nil {
		return err
	}
	defer n.client.Close()
	if err := n.streams.createGroup(ctx); err != nil {
		return err
	}
	options := worker.Options{MaxConcurrentActivityExecutionSize: cfg.Concurrency}
	register := func(r worker.Registry) {
		r.RegisterWorkflowWithOptions(n.workflow, workflow.RegisterOptions{Name: NaiveWorkflow})
		r.RegisterActivity(n.llm.ask)
		r.RegisterActivity(n.rows.persist)
		r.RegisterActivity(n.streams.publish)
		r.RegisterActivity(n.streams.acknowledge)
	}
	return withWorker(ctx, n.client, NaiveQueue, options, register, func(ctx context.Context) error {
		s.ready()
		return n.bridge(ctx)
	})
}

// bridge starts a workflow for each entry.
func (n *naive) bridge(ctx context.Context) error {
	for ctx.Err() == nil {
		entries, err := n.streams.read(ctx)
		if err != nil {
			return err
		}
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(naiveStarts)
		for _, entry := range entries {
			group.Go(func() error { return n.start(ctx, entry) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}

func (n *naive) start(ctx context.Context, entry redis.XMessage) error {
	j := jobOf(entry.Values)
	_, err := n.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID:                    Naive + "-" + j.ID,
		TaskQueue:             NaiveQueue,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
	}, NaiveWorkflow, naiveInput{Job: j, EntryID: entry.ID})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return nil
}

func (n *naive) workflow(ctx workflow.Context, in naiveInput) error {
	retry := &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: time.Minute}
	call := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: llmTimeout, RetryPolicy: retry})
	step := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 30 * time.Second, RetryPolicy: retry})
	var answer Answer
	if err := workflow.ExecuteActivity(call, n.llm.ask, in.Job).Get(ctx, &answer); err != nil {
		return err
	}
	if err := workflow.ExecuteActivity(step, n.rows.persist, in.Job, answer).Get(ctx, nil); err != nil {
		return err
	}
	if err := workflow.ExecuteActivity(step, n.streams.publish, in.Job, answer).Get(ctx, nil); err != nil {
		return err
	}
	return workflow.ExecuteActivity(step, n.streams.acknowledge, in.EntryID).Get(ctx, nil)
}
