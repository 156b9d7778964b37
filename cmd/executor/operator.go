package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/term"
)

// connectTimeout is how long a command waits for each server before it says
// which one does not answer.
const connectTimeout = 10 * time.Second

// operator is what the commands for people work with: the settings, a printer,
// and a connection to each server a command asks for.
type operator struct {
	cfg    config.Config
	out    *term.Printer
	closes []func() error
}

// newOperator reads the settings and the output format. Close it.
func newOperator(cmd *cobra.Command) (*operator, error) {
	cfg, err := loadConfig()
	if err != nil {
		return nil, err
	}
	name, err := cmd.Flags().GetString("output")
	if err != nil {
		return nil, err
	}
	format, err := term.ParseFormat(name)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return &operator{cfg: cfg, out: term.New(cmd.OutOrStdout(), format, config.Environ()["NO_COLOR"])}, nil
}

// outputFlag adds -o. newOperator reads it.
func outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringP("output", "o", string(term.Table), "table, json or jsonl")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{string(term.Table), string(term.JSON), string(term.JSONL)}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *operator) Close() {
	for _, end := range slices.Backward(o.closes) {
		_ = end() // the command has said what there was to say
	}
}

// rows connects to the result store; it creates nothing there.
func (o *operator) rows(ctx context.Context) (*store.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s, err := store.Attach(ctx, o.cfg.Store())
	if err != nil {
		code := exitUnreachable
		if errors.Is(err, store.ErrConfig) || errors.Is(err, store.ErrNoStore) {
			code = exitUsage
		}
		return nil, &exitError{code, err}
	}
	o.closes = append(o.closes, s.Close)
	return s, nil
}

// redis connects to Redis.
func (o *operator) redis(ctx context.Context) (*stream.Client, error) {
	c, err := stream.Open(o.cfg.Stream(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	o.closes = append(o.closes, c.Close)
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.Ping(ctx); err != nil {
		if errors.Is(err, stream.ErrUnavailable) {
			err = fmt.Errorf("start Redis or set REDIS_CONNECTION: %w", err)
		}
		return nil, &exitError{exitUnreachable, err}
	}
	return c, nil
}

// temporal connects to the Temporal server and returns the namespace as well.
func (o *operator) temporal(ctx context.Context) (client.Client, string, error) {
	options, err := app.TemporalOptions(o.cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, "", &exitError{exitUsage, err}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := client.DialContext(ctx, options)
	if err != nil {
		return nil, options.Namespace, &exitError{exitUnreachable, fmt.Errorf("the Temporal server does not answer at %s: start it or set TEMPORAL_ADDRESS (%w)", options.HostPort, err)}
	}
	o.closes = append(o.closes, func() error { c.Close(); return nil })
	_, err = c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: options.Namespace})
	if _, nowhere := errors.AsType[*serviceerror.NamespaceNotFound](err); nowhere {
		return nil, options.Namespace, &exitError{
			exitUnreachable,
			fmt.Errorf("the Temporal server at %s has no namespace %s: set TEMPORAL_NAMESPACE; executor doctor says more", options.HostPort, options.Namespace),
		}
	}
	return c, options.Namespace, nil
}

// link is the page of a run in the Web UI; without a run id, of the newest run.
func (o *operator) link(namespace, workflowID, runID string) string {
	page := strings.TrimRight(o.cfg.TemporalUIURL, "/") + "/namespaces/" + url.PathEscape(namespace) + "/workflows/" + url.PathEscape(workflowID)
	if runID != "" {
		page += "/" + url.PathEscape(runID) + "/history"
	}
	return page
}

// selection are the flags that choose jobs.
type selection struct {
	roles   []string
	user    string
	project string
	since   time.Duration
}

// selectionFlags adds --role, --user, --project and --since.
func selectionFlags(cmd *cobra.Command, s *selection) {
	f := cmd.Flags()
	f.StringSliceVar(&s.roles, "role", nil, "only these roles: "+job.RoleNames())
	f.StringVar(&s.user, "user", "", "only jobs of this user")
	f.StringVar(&s.project, "project", "", "only jobs of this project")
	f.DurationVar(&s.since, "since", 0, "only jobs that ended this long ago at most, for example 2h")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleNames(), cobra.ShellCompDirectiveNoFileComp))
}

// filter turns the flags into a filter of rows.
func (s selection) filter(now time.Time) (store.Filter, error) {
	f := store.Filter{UserID: s.user, ProjectID: s.project}
	for _, name := range s.roles {
		role, err := job.ParseRole(name)
		if err != nil {
			return store.Filter{}, &exitError{exitUsage, fmt.Errorf("--role: %w", err)}
		}
		f.Roles = append(f.Roles, role)
	}
	if s.since < 0 {
		return store.Filter{}, &exitError{exitUsage, errors.New("--since must not be negative")}
	}
	if s.since > 0 {
		f.Since = now.Add(-s.since)
	}
	return f, nil
}

func roleNames() []string {
	var names []string
	for _, r := range job.Roles() {
		names = append(names, string(r))
	}
	return names
}
