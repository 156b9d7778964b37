package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

// submission is what submit prints.
type submission struct {
	JobID   string `json:"jobId"`
	Role    string `json:"role"`
	Stream  string `json:"stream"`
	EntryID string `json:"entryId"`
	Type    string `json:"type,omitempty"` // of the update, with --wait
	Payload string `json:"payload,omitempty"`
}

func newSubmit() *cobra.Command {
	var (
		j       job.Job
		role    string
		wait    bool
		timeout time.Duration
		output  string
	)
	cmd := &cobra.Command{
		Use:   "submit --role ROLE --task TEXT",
		Short: "Add a job to its stream, as NodPT's web API does",
		Example: `  executor submit --role agent --task "Say hello" --wait
  executor submit --role inspector --task "Find the bug" --payload "$(cat main.go)" --wait
  executor submit --role chat --task "Hello" --model llama3 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			if j.Role, err = job.ParseRole(role); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--role: %w", err)}
			}
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("unknown output %.20q: use text or json", output)}
			}
			if j.ID == "" {
				j.ID = uuid.NewString()
			}
			// The same check the bridge makes: better here than as a dead letter.
			decoded, err := job.Decode(j.Role, job.Entry{Stream: j.Role.Stream(), ID: "1-0", Fields: j.Fields()})
			switch {
			case err != nil:
				return &exitError{exitUsage, err}
			case decoded.Job.Priority != j.Priority:
				return &exitError{exitUsage, errors.New("--priority takes 1 (first) to 5 (last)")}
			case decoded.Job.Model != j.Model:
				return &exitError{exitUsage, errors.New("--model is for chat only; the other roles' models are settings")}
			}
			return submit(cmd, cfg, j, wait, timeout, output)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&role, "role", "", "one of "+job.RoleNames())
	flags.StringVar(&j.Task, "task", "", "what to do; for chat: the message")
	flags.StringVar(&j.Payload, "payload", "", "payload; for the inspector: the code")
	flags.StringVar(&j.ID, "job-id", "", "job id (default: a random one)")
	flags.StringVar(&j.WorkflowID, "workflow", "", "NodPT workflow id")
	flags.StringVar(&j.UserID, "user", "", "user id")
	flags.StringVar(&j.ProjectID, "project", "", "project id")
	flags.StringVar(&j.NodeID, "node", "", "node id")
	flags.StringVar(&j.ConnectionID, "connection", "", "SignalR connection id")
	flags.StringVar(&j.Model, "model", "", "model to ask for (chat only)")
	flags.IntVar(&j.Priority, "priority", 0, "1 (first) to 5 (last)")
	flags.BoolVar(&wait, "wait", false, "wait for the outcome and print it")
	flags.DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait")
	flags.StringVarP(&output, "output", "o", "text", "text or json")
	_ = cmd.MarkFlagRequired("role")
	return cmd
}

func submit(cmd *cobra.Command, cfg config.Config, j job.Job, wait bool, timeout time.Duration, output string) error {
	ctx := cmd.Context()
	c, err := stream.Open(cfg.Stream(), slog.New(slog.DiscardHandler))
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer func() { _ = c.Close() }()

	after, err := c.LastID(ctx, stream.Updates)
	if err != nil {
		return &exitError{exitUnreachable, err}
	}
	s := submission{JobID: j.ID, Role: string(j.Role), Stream: j.Role.Stream()}
	if s.EntryID, err = c.Add(ctx, s.Stream, j.Fields()); err != nil {
		return &exitError{exitUnreachable, err}
	}
	if wait {
		if output == "text" {
			fmt.Fprintf(cmd.ErrOrStderr(), "submitted %s to %s, waiting\n", s.JobID, s.Stream)
		}
		if err := await(ctx, c, after, timeout, &s); err != nil {
			return err
		}
	}
	if err := s.print(cmd.OutOrStdout(), output); err != nil {
		return err
	}
	if s.Type == "error" {
		return &exitError{code: exitFailed}
	}
	return nil
}

// await follows the updates until one of the job arrives.
func await(ctx context.Context, c *stream.Client, after string, timeout time.Duration, s *submission) error {
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return &exitError{exitTimeout, fmt.Errorf("job %s has no outcome yet: see it in the Temporal UI as %s", s.JobID, job.WorkflowID(job.Role(s.Role), s.JobID))}
		}
		entries, err := c.TailUpdates(ctx, stream.Updates, after, min(left, time.Second))
		switch {
		case ctx.Err() != nil:
			return &exitError{exitFailed, errors.New("interrupted; the job goes on")}
		case err != nil:
			return &exitError{exitUnreachable, err}
		}
		for _, e := range entries {
			after = e.ID
			fields := map[string]string{}
			for _, f := range e.Fields {
				fields[f.Name] = f.Value
			}
			if fields["JobId"] == s.JobID && fields["Role"] == s.Role {
				s.Type, s.Payload = fields["Type"], fields["Payload"]
				return nil
			}
		}
	}
}

func (s submission) print(w io.Writer, output string) error {
	switch {
	case output == "json":
		return json.NewEncoder(w).Encode(s)
	case s.Type != "":
		_, err := fmt.Fprintln(w, strings.TrimRight(s.Payload, "\n"))
		return err
	default:
		_, err := fmt.Fprintf(w, "%s %s %s\n", s.JobID, s.Stream, s.EntryID)
		return err
	}
}
