// Package demo submits one set of jobs as NodPT's web API would, watches what
// comes back, and says whether that is what should have come back. It exists to
// show a newcomer the whole way of a job within seconds, and to be the coarsest
// test of all: its exit code is the answer to "does it work here?".
package demo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite" // the driver the executor's result store uses
)

// Names of DESIGN.md section 2, repeated here because this module must not
// import the executor's packages.
const (
	updatesStream = "signalr:updates"
	group         = "executor-group"
)

// Config of a demo.
type Config struct {
	Redis    string // host:port
	Database string // path of the executor's SQLite file
	// Scripted says that the LLM is the stand-in, which fails on demand.
	Scripted bool
	// WorkflowURL returns the page of a workflow in the Web UI.
	WorkflowURL func(workflowID string) string
	Progress    io.Writer
	Patience    time.Duration // until the last outcome
}

// Job is one job of the demo and what became of it.
type Job struct {
	Role, ID string
	Fields   []string // names and values
	// WantStatus and WantAttempts are the expected outcome; 0 attempts: any.
	WantStatus   string
	WantAttempts int

	Entry    string // id of its stream entry
	Update   string // id of its update's entry; empty: none came
	Type     string // "result" or "error"
	Row      *Row   // nil: none was written
	Dead     bool   // a dead letter was written
	Acked    bool   // the entry is no longer pending
	Workflow string // Temporal's id
}

// Row is the part of a row of executor_jobs that the demo shows.
type Row struct {
	Status, ErrorCode              string
	Attempts                       int
	PromptTokens, CompletionTokens int64
	WorkflowID                     string
}

// Jobs returns the demo's jobs, fresh ones for each tag.
func Jobs(tag string, scripted bool) []*Job {
	var jobs []*Job
	add := func(role, name, status string, attempts int, fields ...string) {
		id := "demo-" + tag + "-" + role + "-" + name
		text := []string{"jobId", id, "userId", "demo-user", "projectId", "demo-project", "connectionId", "demo-connection"}
		if role != "chat" {
			text = append(text, "workflowId", "demo-"+tag, "nodeId", "node-"+name)
		}
		jobs = append(jobs, &Job{
			Role: role, ID: id, Fields: append(text, fields...), WantStatus: status, WantAttempts: attempts,
		})
	}
	const completed, failed = "completed", "failed"
	add("manager", "1", completed, 0, "task", "Plan a landing page for a bakery.")
	add("manager", "2", completed, 0, "task", "Split this project into three steps.")
	add("inspector", "1", completed, 0, "task", "Is this safe?", "payload", `{"code":"eval(input())"}`)
	add("inspector", "2", completed, 0, "task", "What does this do?", "payload", `{"code":"x = y // 2"}`)
	add("agent", "1", completed, 0, "task", "Write a headline about fresh bread.")
	if scripted {
		add("agent", "third-try", completed, 3, "task", "!fail 503 x2")
		add("agent", "fails", failed, 1, "task", "!fail 400")
	} else {
		add("agent", "2", completed, 0, "task", "Write a line about cinnamon rolls.")
	}
	add("chat", "1", completed, 0, "message", "What can you do for me?", "nodeLevel", "manager")
	add("chat", "2", completed, 0, "message", "And how long will that take?", "nodeLevel", "agent")
	return jobs
}

// Run submits jobs and follows them to their end. It returns them with what
// became of them, and an error only where it could not watch.
func Run(ctx context.Context, cfg Config, jobs []*Job) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Patience)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: cfg.Redis})
	defer func() { _ = c.Close() }()

	last, err := lastID(ctx, c)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		j.Entry, err = c.XAdd(ctx, &redis.XAddArgs{Stream: "jobs:" + j.Role, Values: j.Fields}).Result()
		if err != nil {
			return fmt.Errorf("submit %s: %w", j.ID, err)
		}
	}
	_, _ = fmt.Fprintf(cfg.Progress, "\n%d jobs submitted to jobs:{manager,inspector,agent,chat}; outcomes as they arrive on %s:\n", len(jobs), updatesStream)
	if err := follow(ctx, c, last, jobs, cfg.Progress); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	// What is asked from here on is quick, and wanted after a timeout as well.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := settle(ctx, c, jobs); err != nil {
		return err
	}
	return readRows(ctx, cfg.Database, jobs)
}

func lastID(ctx context.Context, c *redis.Client) (string, error) {
	newest, err := c.XRevRangeN(ctx, updatesStream, "+", "-", 1).Result()
	if err != nil {
		return "", fmt.Errorf("read %s: %w", updatesStream, err)
	}
	if len(newest) == 0 {
		return "0-0", nil
	}
	return newest[0].ID, nil
}

// follow reads updates until every job has one.
func follow(ctx context.Context, c *redis.Client, last string, jobs []*Job, progress io.Writer) error {
	waiting := map[string]*Job{}
	for _, j := range jobs {
		waiting[j.ID] = j
	}
	for len(waiting) > 0 {
		// A blocking read ends only at its own deadline, so keep it short.
		read, err := c.XRead(ctx, &redis.XReadArgs{Streams: []string{updatesStream, last}, Block: 500 * time.Millisecond}).Result()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", updatesStream, err)
		}
		for _, m := range read[0].Messages {
			last = m.ID
			id, _ := m.Values["JobId"].(string)
			j := waiting[id]
			if j == nil {
				continue
			}
			delete(waiting, id)
			j.Update = m.ID
			j.Type, _ = m.Values["Type"].(string)
			_, _ = fmt.Fprintf(progress, "  %-10s %-32s %-7s after %s\n", j.Role, j.ID, j.Type, j.Latency())
		}
	}
	return nil
}

// settle waits until no entry is pending, which is the last step of a job, and
// looks for dead letters.
func settle(ctx context.Context, c *redis.Client, jobs []*Job) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for _, j := range jobs {
		stream := "jobs:" + j.Role
		for !j.Acked && j.Update != "" {
			pending, err := c.XPendingExt(ctx, &redis.XPendingExtArgs{
				Stream: stream, Group: group, Start: j.Entry, End: j.Entry, Count: 1,
			}).Result()
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("pending entries of %s: %w", stream, err)
			}
			j.Acked = err == nil && len(pending) == 0
			if j.Acked {
				break
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return nil // the report says what is still pending
			}
		}
		dead, err := c.XRange(ctx, stream+":dead", "-", "+").Result()
		if err != nil {
			return fmt.Errorf("dead letters of %s: %w", stream, err)
		}
		j.Dead = slices.ContainsFunc(dead, func(m redis.XMessage) bool { return m.Values["original_id"] == j.Entry })
	}
	return nil
}

func readRows(ctx context.Context, database string, jobs []*Job) error {
	dsn := (&url.URL{Scheme: "file", Path: filepath.ToSlash(database), RawQuery: "mode=ro&_pragma=busy_timeout(5000)"}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return fmt.Errorf("result store: %w", err)
	}
	defer func() { _ = db.Close() }()
	for _, j := range jobs {
		var r Row
		err := db.QueryRowContext(ctx, `SELECT status, error_code, attempts, prompt_tokens, completion_tokens, workflow_id
			FROM executor_jobs WHERE role = ? AND job_id = ?`, j.Role, j.ID).
			Scan(&r.Status, &r.ErrorCode, &r.Attempts, &r.PromptTokens, &r.CompletionTokens, &r.WorkflowID)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return fmt.Errorf("result store: %w", err)
		}
		j.Row = &r
	}
	return nil
}

// Latency is the time from the job's entry to its update by Redis's clock, or 0.
func (j *Job) Latency() time.Duration {
	if j.Update == "" {
		return 0
	}
	return millis(j.Update) - millis(j.Entry)
}

func millis(entryID string) time.Duration {
	ms, _, _ := strings.Cut(entryID, "-")
	n, _ := strconv.ParseInt(ms, 10, 64)
	return time.Duration(n) * time.Millisecond
}

// Differences says how the job's end differs from the expected one, in words.
func (j *Job) Differences() []string {
	var d []string
	if j.Update == "" {
		return []string{"no outcome arrived on " + updatesStream}
	}
	wantType := "result"
	if j.WantStatus != "completed" {
		wantType = "error"
	}
	if j.Type != wantType {
		d = append(d, fmt.Sprintf("its update is of type %q, not %q", j.Type, wantType))
	}
	if j.Row == nil {
		d = append(d, "it has no row in the result store")
	} else {
		if j.Row.Status != j.WantStatus {
			d = append(d, fmt.Sprintf("it is %s, not %s", j.state(), j.WantStatus))
		}
		if j.WantAttempts != 0 && j.Row.Attempts != j.WantAttempts {
			d = append(d, fmt.Sprintf("it took %d attempts, not %d", j.Row.Attempts, j.WantAttempts))
		}
	}
	if wantDead := j.WantStatus == "failed"; j.Dead != wantDead {
		d = append(d, fmt.Sprintf("dead letter written: %t, not %t", j.Dead, wantDead))
	}
	if !j.Acked {
		d = append(d, "its entry is still pending")
	}
	return d
}

func (j *Job) state() string {
	switch {
	case j.Row == nil:
		return "no outcome"
	case j.Row.ErrorCode != "":
		return j.Row.Status + ": " + j.Row.ErrorCode
	default:
		return j.Row.Status
	}
}

// Report writes the table of jobs to out and returns an error that names every
// difference from the expected outcome.
func Report(cfg Config, jobs []*Job, out io.Writer) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"Job", "Role", "State", "Attempts", "Tokens in/out", "Latency", "Workflow"})
	t.SetColumnConfigs([]table.ColumnConfig{
		{Name: "Attempts", Align: text.AlignRight},
		{Name: "Tokens in/out", Align: text.AlignRight},
		{Name: "Latency", Align: text.AlignRight},
	})
	var differences []string
	for _, j := range jobs {
		attempts, tokens, link, latency := "", "", "", ""
		if j.Row != nil {
			attempts = strconv.Itoa(j.Row.Attempts)
			tokens = fmt.Sprintf("%d/%d", j.Row.PromptTokens, j.Row.CompletionTokens)
			link = cfg.WorkflowURL(j.Row.WorkflowID)
		}
		if j.Update != "" {
			latency = fmt.Sprintf("%.2f s", j.Latency().Seconds())
		}
		t.AppendRow(table.Row{j.ID, j.Role, j.state(), attempts, tokens, latency, link})
		for _, d := range j.Differences() {
			differences = append(differences, j.ID+": "+d)
		}
	}
	if _, err := fmt.Fprintln(out, t.Render()); err != nil {
		return err
	}
	if len(differences) > 0 {
		return fmt.Errorf("the outcome is not as expected:\n  %s", strings.Join(differences, "\n  "))
	}
	return nil
}
