package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/jobs"
	"github.com/nodpt/executor/internal/term"
)

func newWatch() *cobra.Command {
	var (
		roles   []string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "watch [ID…]",
		Short: "Follow outcomes as they come, or jobs until they have ended",
		Long: `Without ids: follow signalr:updates and print a line per outcome as it comes: when,
role, job, status, code, tokens and how long it took. Answers are not shown.

With ids (jobIds or workflow ids): follow those jobs, a line for each change of
state, until all have ended. The exit code is 0 if all were completed, 1 if one
was not, 4 if --timeout was over before.

Ctrl-C ends the watching, not the jobs.`,
		Example: `  executor watch
  executor watch --role agent -o jsonl
  executor watch j1 j2 --timeout 5m`,
		ValidArgsFunction: completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, err := parseRoles(roles)
			if err != nil {
				return err
			}
			if timeout < 0 {
				return &exitError{exitUsage, errors.New("--timeout must not be negative; 0 waits for ever")}
			}
			if f, _ := cmd.Flags().GetString("output"); f == string(term.JSON) {
				return &exitError{exitUsage, errors.New("what is watched has no end, and a JSON document needs one: use -o jsonl")}
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var stop context.CancelFunc
				ctx, stop = context.WithTimeout(ctx, timeout)
				defer stop()
			}
			if len(args) == 0 {
				return watchAll(ctx, cmd, chosen)
			}
			return watchJobs(ctx, cmd, args, chosen)
		},
	}
	roleFlag(cmd, &roles, "only jobs of these roles")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long to watch; 0 is for ever")
	outputFlag(cmd)
	return cmd
}

// watchAll prints outcomes until ctx ends.
func watchAll(ctx context.Context, cmd *cobra.Command, roles []job.Role) error {
	l, err := newLookout(ctx, cmd, sight{rows: helpful, streams: needed})
	if err != nil {
		return err
	}
	defer l.Close()
	err = l.Outcomes(ctx, roles, func(o jobs.Outcome) error {
		code, again := o.Code, ""
		if code == string(o.Status) {
			code = ""
		}
		if o.Repeated {
			again = "again"
		}
		used := tokens(o.PromptTokens, o.CompletionTokens)
		if used != "" {
			used += " tokens"
		}
		return term.Event(l.out, o,
			term.Cell{Value: o.At.Local().Format(time.TimeOnly), Color: term.Faint},
			term.Cell{Value: string(o.Role), Width: 9},
			term.Cell{Value: string(o.Status), Width: 9, Color: statusColor(o.Status)},
			term.Cell{Value: o.JobID, Width: 24},
			term.Cell{Value: code, Color: term.Bad},
			term.Cell{Value: used},
			term.Cell{Value: short(o.Took())},
			term.Cell{Value: again, Color: term.Faint},
		)
	})
	if ctx.Err() != nil {
		return nil // the end that was asked for
	}
	return l.failed(err)
}

// change is a state a job has come to.
type change struct {
	At time.Time `json:"at"`
	jobs.Job
}

// watchJobs prints the changes of jobs until all have ended.
func watchJobs(ctx context.Context, cmd *cobra.Command, ids []string, roles []job.Role) error {
	l, err := newLookout(ctx, cmd, sight{rows: needed, runs: needed, streams: wanted})
	if err != nil {
		return err
	}
	defer l.Close()
	all, err := l.findAll(ctx, ids, roles)
	if err == nil {
		all, err = l.Follow(ctx, all, l.printChange)
	}
	switch {
	case cmd.Context().Err() != nil:
		return &exitError{code: exitFailed}
	case ctx.Err() != nil:
		return l.overtime(all)
	case err != nil:
		return l.failed(err)
	}
	for _, f := range all {
		if f.Status != jobs.Completed {
			return &exitError{code: exitFailed}
		}
	}
	return nil
}

// findAll finds jobs by their ids.
func (l *lookout) findAll(ctx context.Context, ids []string, roles []job.Role) ([]jobs.Found, error) {
	var all []jobs.Found
	for _, id := range ids {
		f, err := l.Find(ctx, id, roles)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func (l *lookout) printChange(f jobs.Found) error {
	now := time.Now()
	attempt, next := "", until(f.NextAttemptAt, now)
	if f.Attempts > 1 {
		attempt = fmt.Sprintf("attempt %d", f.Attempts)
	}
	if next != "" {
		next = "next " + next
	}
	took := ""
	if f.Ended() {
		took = short(f.Took())
	}
	return term.Event(l.out, change{At: now.UTC(), Job: f.Job},
		term.Cell{Value: now.Format(time.TimeOnly), Color: term.Faint},
		term.Cell{Value: string(f.Role), Width: 9},
		term.Cell{Value: f.Name(), Width: 24},
		term.Cell{Value: stateOf(f.Job), Width: 9, Color: statusColor(f.Status)},
		term.Cell{Value: attempt},
		term.Cell{Value: codeOf(f.Job), Color: term.Bad},
		term.Cell{Value: next},
		term.Cell{Value: took},
	)
}

// overtime says which jobs have not ended in time.
func (l *lookout) overtime(all []jobs.Found) error {
	open := 0
	for _, f := range all {
		if !f.Ended() {
			open++
		}
	}
	return &exitError{exitTimeout, fmt.Errorf("%d of %d jobs have not ended yet; they go on", open, len(all))}
}
