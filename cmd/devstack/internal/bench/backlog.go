package bench

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite" // the driver of the executor's result store

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// Backlog is how a long backlog is worked off, in jobs a second.
type Backlog struct {
	SmallEntries int     `json:"small_entries"`
	Entries      int     `json:"entries"`
	Small        float64 `json:"small_jobs_per_second"` // of a backlog of smallBacklog entries
	First        Window  `json:"first"`                 // of the large one
	Middle       Window  `json:"middle"`                // of it
	Skipped      float64 `json:"skipped_per_second"`    // entries whose jobs were done before
	PeakMB       float64 `json:"peak_megabytes"`        // of the executor
	Drain        int     `json:"drain_entries"`
	DrainRate    float64 `json:"drain_jobs_per_second"` // a backlog worked off from beginning to end
	DrainMB      float64 `json:"drain_peak_megabytes"`
	Size         Size    `json:"size"`
}

// Window is what went on in backlogWindow.
type Window struct {
	Ended   float64 `json:"ended_per_second"`   // jobs
	Started float64 `json:"started_per_second"` // runs; they are ahead of what ends by at most the jobs in flight
	MB      float64 `json:"megabytes"`          // of the executor, at its end
}

// Size is what a job takes up, in bytes: while it waits, and when it is done.
type Size struct {
	Entry    float64 `json:"entry"`    // of Redis's memory, until the stream is trimmed
	Kept     float64 `json:"kept"`     // of Redis's memory, for its update and the key that keeps it from being told twice
	Temporal float64 `json:"temporal"` // on disk, until its retention is over
	Row      float64 `json:"row"`      // on disk, of the result store
}

const (
	smallBacklog = 1000
	largeBacklog = 100_000
	drainBacklog = 10_000
	// backlogWindow is how long a window in the large backlog is.
	backlogWindow = 90 * time.Second
	// donePrefix begins the ids of jobs that have their row before they are read.
	donePrefix = "done-"
)

// measureBacklog works off backlogs: a full one of ten thousand, and one of a hundred
// thousand of which most jobs are done already, so that it ends in minutes; and
// before, between and after them a small one, because Temporal becomes slower with
// each run that it keeps, whatever waits. Jobs of the large one that are not done
// stand where it is measured: at the beginning and in the middle.
func measureBacklog(ctx context.Context, opts Options) (b Backlog, err error) {
	w, err := newWorld(ctx, opts, "backlog")
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err := w.llm.script(ctx, 0, 0); err != nil {
		return b, err
	}

	b.SmallEntries, b.Drain = smallBacklog, drainBacklog
	var small []float64
	again := func() error {
		rate, _, _, err := w.drain(ctx, fmt.Sprintf("small%d", len(small)), smallBacklog)
		small = append(small, rate)
		b.Small = median(small)
		return err
	}
	if err := again(); err != nil {
		return b, err
	}
	if b.DrainRate, b.DrainMB, b.Size, err = w.drain(ctx, "drain", drainBacklog); err != nil {
		return b, err
	}
	w.say("backlog of %d: %.1f jobs/s, at most %.0f MB", drainBacklog, b.DrainRate, b.DrainMB)
	if err := again(); err != nil {
		return b, err
	}
	if err := w.large(ctx, &b); err != nil {
		return b, err
	}
	err = again()
	w.say("backlog of %d: %.1f, %.1f and %.1f jobs/s, before, between and after the others", smallBacklog, small[0], small[1], small[2])
	return b, err
}

// drain adds jobs, then starts the executor, and returns the rate at which they
// end, from the first to the last, the executor's memory at its highest in MB, and
// what a job takes up.
func (w *world) drain(ctx context.Context, name string, n int) (_, _ float64, size Size, err error) {
	empty, err := w.sizes(ctx)
	if err != nil {
		return 0, 0, size, err
	}
	if err := w.addBacklog(ctx, name, n, func(int) bool { return false }); err != nil {
		return 0, 0, size, err
	}
	waiting, err := w.sizes(ctx)
	if err != nil {
		return 0, 0, size, err
	}
	follow := reader{redis: w.redis, stream: updates}
	if err := follow.skip(ctx); err != nil {
		return 0, 0, size, err
	}
	m, err := w.executor(ctx, Executor, nil, "run")
	if err != nil {
		return 0, 0, size, err
	}
	first, last, err := follow.count(ctx, n)
	if err != nil {
		return 0, 0, size, err
	}
	if err := w.settle(ctx, group, agentStream); err != nil {
		return 0, 0, size, err
	}
	memories, err := w.memories()
	if err != nil {
		return 0, 0, size, err
	}
	// The files grow until everything is in them, which the end of the process sees to.
	if err := w.stop(ctx, m); err != nil {
		return 0, 0, size, err
	}
	done, err := w.sizes(ctx)
	size = Size{
		Entry: (waiting.Entry - empty.Entry) / float64(n), Kept: (done.Entry - waiting.Entry) / float64(n),
		Temporal: (done.Temporal - waiting.Temporal) / float64(n), Row: (done.Row - waiting.Row) / float64(n),
	}
	return float64(n-1) / last.Sub(first).Seconds(), mb(memories[Executor].Peak), size, err
}

// sizes are what Redis, Temporal's directory and the result store take up at the
// moment.
func (w *world) sizes(ctx context.Context) (s Size, err error) {
	if s.Entry, err = w.redisMemory(ctx); err != nil {
		return s, err
	}
	if s.Temporal, err = onDisk(w.path("temporal"), "*"); err != nil {
		return s, err
	}
	s.Row, err = onDisk(w.dir, "executor.db*")
	return s, err
}

// onDisk is the size of those files of a directory whose names match, in bytes.
func onDisk(dir, names string) (bytes float64, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if is, err := filepath.Match(names, entry.Name()); err != nil || !is {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) { // a database's own, that it has removed
			return nil
		}
		if err == nil {
			bytes += float64(info.Size())
		}
		return err
	})
	return bytes, err
}

func mb(bytes uint64) float64 { return float64(bytes) / 1e6 }

// count waits for so many updates and returns when the first and the last came.
func (r *reader) count(ctx context.Context, n int) (first, last time.Time, err error) {
	for seen := 0; seen < n; {
		ids, err := r.next(ctx)
		if err != nil {
			return first, last, err
		}
		last = time.Now()
		if seen == 0 {
			first = last
		}
		seen += len(ids)
	}
	return first, last, nil
}

// large measures the backlog of a hundred thousand.
func (w *world) large(ctx context.Context, b *Backlog) error {
	// Somewhat more than what ends in a window, so that it ends within these jobs.
	perWindow := int(1.3 * max(b.Small, b.DrainRate) * backlogWindow.Seconds())
	middle := largeBacklog / 2
	b.Entries = largeBacklog
	fresh := func(i int) bool { return i < perWindow || i >= middle && i < middle+perWindow }
	if err := w.addBacklog(ctx, "large", largeBacklog, func(i int) bool { return !fresh(i) }); err != nil {
		return err
	}
	if err := w.writeRows(ctx); err != nil {
		return err
	}
	follow := reader{redis: w.redis, stream: updates}
	if err := follow.skip(ctx); err != nil {
		return err
	}
	m, err := w.executor(ctx, Executor, nil, "run")
	if err != nil {
		return err
	}
	var firstEnded, middleBegan time.Time
	if b.First, _, firstEnded, err = w.window(ctx, &follow, perWindow); err != nil {
		return err
	}
	if b.Middle, middleBegan, _, err = w.window(ctx, &follow, perWindow); err != nil {
		return err
	}
	b.Skipped = float64(middle-perWindow) / max(middleBegan.Sub(firstEnded).Seconds(), 1e-3)
	if err := w.settle(ctx, group, agentStream); err != nil {
		return err
	}
	memories, err := w.memories()
	if err != nil {
		return err
	}
	b.PeakMB = mb(memories[Executor].Peak)
	w.say("backlog of %d: %.1f jobs/s at the beginning, %.1f in the middle, %.0f done before a second, at most %.0f MB",
		largeBacklog, b.First.Ended, b.Middle.Ended, b.Skipped, b.PeakMB)
	return w.stop(ctx, m)
}

// window counts n updates, and returns what went on within a window from the first
// of them, or until the last if all came within it; and when the first and the last
// came.
func (w *world) window(ctx context.Context, r *reader, n int) (win Window, first, last time.Time, err error) {
	before, err := w.inFlight(ctx)
	if err != nil {
		return win, first, last, err
	}
	closing := func(ended int, after time.Duration) error {
		now, err := w.inFlight(ctx)
		if err != nil {
			return err
		}
		memories, err := w.memories()
		win = Window{
			Ended: float64(ended-1) / after.Seconds(), Started: (float64(ended-1) + now - before) / after.Seconds(),
			MB: mb(memories[Executor].Now),
		}
		return err
	}
	open := true
	for seen := 0; seen < n; {
		ids, err := r.next(ctx)
		if err != nil {
			return win, first, last, err
		}
		if len(ids) == 0 {
			continue
		}
		last = time.Now()
		if seen == 0 {
			first = last
		}
		seen += len(ids)
		if open && (seen >= n || last.Sub(first) >= backlogWindow) {
			open = false
			if err := closing(seen, last.Sub(first)); err != nil {
				return win, first, last, err
			}
		}
	}
	return win, first, last, nil
}

// inFlight is how many entries of the agent's stream are pending.
func (w *world) inFlight(ctx context.Context) (float64, error) {
	groups, err := w.redis.XInfoGroups(ctx, agentStream).Result()
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if g.Name == group {
			return float64(g.Pending), nil
		}
	}
	return 0, nil
}

// addBacklog adds n jobs to the agent's stream. Those that are done get an id that
// says so.
func (w *world) addBacklog(ctx context.Context, name string, n int, done func(int) bool) error {
	const atOnce = 500
	for begin := 0; begin < n; begin += atOnce {
		_, err := w.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := begin; i < min(begin+atOnce, n); i++ {
				id := fmt.Sprintf("%s-%d", name, i)
				if done(i) {
					id = donePrefix + id
				}
				p.XAdd(ctx, &redis.XAddArgs{Stream: agentStream, Values: contestant.NewJob(id, taskBytes, payloadBytes).Fields()})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// writeRows writes the rows of those jobs of the stream that are done, as another
// executor would have written them four days ago.
func (w *world) writeRows(ctx context.Context) (err error) {
	db, err := sql.Open("sqlite", w.path("executor.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	insert, err := tx.PrepareContext(ctx, `INSERT INTO executor_jobs (role, job_id, status, output, error_code, error_message, model,
		prompt_tokens, completion_tokens, truncated, attempts, workflow_id, run_id, effect, fence, stream, entry_id, last_entry_id, dead_id,
		nodpt_workflow_id, user_id, project_id, node_id, connection_id, enqueued_at, started_at, finished_at)
		VALUES ('agent', ?1, 'completed', 'done', '', '', 'trt-llm-agent', 1, 1, 0, 1, 'job:agent:' || ?1, '', 'entry:jobs:agent/' || ?2, 0,
		'jobs:agent', ?2, ?2, '', '', '', '', '', '', ?3, ?3, ?3)`)
	if err != nil {
		return err
	}
	defer func() { _ = insert.Close() }()
	at := time.Now().UTC().Add(-4 * 24 * time.Hour).Format("2006-01-02T15:04:05.000000Z07:00")
	for from := "-"; ; {
		entries, err := w.redis.XRangeN(ctx, agentStream, from, "+", 2000).Result()
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return tx.Commit()
		}
		for _, e := range entries {
			id, _ := e.Values["jobId"].(string)
			if !strings.HasPrefix(id, donePrefix) {
				continue
			}
			if _, err := insert.ExecContext(ctx, id, e.ID, at); err != nil {
				return err
			}
		}
		from = "(" + entries[len(entries)-1].ID
	}
}
