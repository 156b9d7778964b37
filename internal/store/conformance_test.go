package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nodpt/executor/internal/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStore holds every dialect to the same behaviour: SQLite always, the
// servers that EXECUTOR_TEST_DATABASES names.
func TestStore(t *testing.T) {
	t.Parallel()
	all := map[string]databases{sqliteName: sqliteFiles{}}
	for name, server := range chosenServers(t) {
		all[name] = server
	}
	for _, name := range sortedNames(all) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance(t, name, all[name])
		})
	}
}

// bundle is what a test gets: a database and two processes that use it.
type bundle struct {
	url  string
	a, b *Store
}

func open(t testing.TB, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{URL: url}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

func setup(t *testing.T, dbs databases) bundle {
	t.Helper()
	url := dbs.fresh(t)
	return bundle{url: url, a: open(t, url), b: open(t, url)}
}

// noon is a time with more digits than any database keeps.
func noon() time.Time {
	return time.Date(2026, time.March, 4, 12, 0, 0, 123456789, time.FixedZone("CET", 3600))
}

// completed is a row as the final step of a run hands it in.
func completed(jobID, effect string, fence time.Time) job.Row {
	return job.Row{
		Role:    job.Agent,
		JobID:   jobID,
		Outcome: job.Outcome{Status: job.Completed, Output: "answer of " + effect, FinishedAt: fence},
		Effect:  effect,
		Fence:   fence,
	}
}

func persist(t testing.TB, s *Store, row job.Row) job.Persisted {
	t.Helper()
	got, err := s.Persist(t.Context(), row)
	require.NoError(t, err)
	return got
}

func stored(t *testing.T, s *Store, key job.Key) job.Row {
	t.Helper()
	row, found, err := s.Row(t.Context(), key)
	require.NoError(t, err)
	require.True(t, found, "no row of %v", key)
	return row
}

// runSQL runs SQL as a person at the database's own prompt would.
func runSQL(t *testing.T, s *Store, statement string) {
	t.Helper()
	_, err := s.writes.ExecContext(t.Context(), statement)
	require.NoError(t, err)
}

func conformance(t *testing.T, dialect string, dbs databases) {
	t.Helper()

	t.Run("effect and fence decide", func(t *testing.T) {
		t.Parallel()
		testRule(t, setup(t, dbs))
	})
	t.Run("one of many first outcomes is written", func(t *testing.T) {
		t.Parallel()
		testFirstOutcomes(t, setup(t, dbs))
	})
	t.Run("the newest of many effects stands", func(t *testing.T) {
		t.Parallel()
		testConcurrentEffects(t, setup(t, dbs))
	})
	t.Run("every field comes back", func(t *testing.T) {
		t.Parallel()
		testRoundTrip(t, setup(t, dbs))
	})
	t.Run("rows come in batches", func(t *testing.T) {
		t.Parallel()
		testBatches(t, setup(t, dbs))
	})
	t.Run("the last entry is only raised", func(t *testing.T) {
		t.Parallel()
		testRaiseEntry(t, setup(t, dbs))
	})
	t.Run("the dead letter belongs to one effect", func(t *testing.T) {
		t.Parallel()
		testDeadID(t, setup(t, dbs))
	})
	t.Run("keys are compared by bytes", func(t *testing.T) {
		t.Parallel()
		testKeys(t, setup(t, dbs))
	})
	t.Run("rows are listed by filter and page", func(t *testing.T) {
		t.Parallel()
		testList(t, setup(t, dbs))
	})
	t.Run("attaching creates nothing", func(t *testing.T) {
		t.Parallel()
		testAttach(t, dbs)
	})
	t.Run("text no database takes is replaced", func(t *testing.T) {
		t.Parallel()
		testText(t, setup(t, dbs))
	})
	t.Run("rows that can never be stored are refused", func(t *testing.T) {
		t.Parallel()
		testBadRows(t, setup(t, dbs))
	})
	t.Run("a reopened store is the same store", func(t *testing.T) {
		t.Parallel()
		testReopen(t, dbs)
	})
	t.Run("an empty database can be opened by many at once", func(t *testing.T) {
		t.Parallel()
		testOpenTogether(t, dbs)
	})
	t.Run("closing loses no answer", func(t *testing.T) {
		t.Parallel()
		testClose(t, dbs)
	})
	t.Run("a caller may stop waiting", func(t *testing.T) {
		t.Parallel()
		testCancel(t, setup(t, dbs))
	})
	t.Run("anyone's SQL reads the documented columns", func(t *testing.T) {
		t.Parallel()
		testRawSQL(t, dialect, setup(t, dbs))
	})
	t.Run("errors keep content to themselves", func(t *testing.T) {
		t.Parallel()
		testQuietErrors(t, setup(t, dbs))
	})
}

func testRule(t *testing.T, db bundle) {
	t.Helper()
	fence := noon()
	with := func(change func(*job.Row)) func(job.Row) job.Row {
		return func(row job.Row) job.Row {
			change(&row)
			return row
		}
	}
	first := func(jobID string) job.Row {
		row := completed(jobID, "entry:jobs:agent/9-0", fence)
		row.EntryID, row.LastEntryID = "9-0", "9-0"
		return row
	}
	for _, tc := range []struct {
		name   string
		second func(first job.Row) job.Row
		before string // SQL run on the first row
		want   job.Verdict
		stands string // effect
		output string
		last   string
	}{
		{
			name:   "the same again",
			second: with(func(*job.Row) {}),
			want:   job.Kept, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "9-0",
		},
		{
			name: "same effect, other outcome, newer fence",
			second: with(func(r *job.Row) {
				r.Status, r.Output, r.ErrorCode, r.Fence = job.Failed, "", "llm_timeout", fence.Add(time.Hour)
			}),
			want: job.Kept, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "9-0",
		},
		{
			name:   "other effect, newer fence",
			second: with(func(r *job.Row) { r.Effect, r.Output, r.Fence = "run:2", "second", fence.Add(time.Minute) }),
			want:   job.Written, stands: "run:2", output: "second", last: "9-0",
		},
		{
			name:   "other effect, fence newer by a microsecond",
			second: with(func(r *job.Row) { r.Effect, r.Output, r.Fence = "run:2", "second", fence.Add(time.Microsecond) }),
			want:   job.Written, stands: "run:2", output: "second", last: "9-0",
		},
		{
			name:   "other effect, newer within the same microsecond",
			second: with(func(r *job.Row) { r.Effect, r.Output, r.Fence = "run:2", "second", fence.Add(time.Nanosecond) }),
			want:   job.Superseded, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "9-0",
		},
		{
			name:   "other effect, equal fence",
			second: with(func(r *job.Row) { r.Effect, r.Output = "run:2", "second" }),
			want:   job.Superseded, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "9-0",
		},
		{
			name:   "other effect, older fence",
			second: with(func(r *job.Row) { r.Effect, r.Output, r.Fence = "run:2", "second", fence.Add(-time.Minute) }),
			want:   job.Superseded, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "9-0",
		},
		{
			name: "a superseded run still raises the last entry",
			second: with(func(r *job.Row) {
				r.Effect, r.Fence, r.EntryID, r.LastEntryID = "entry:jobs:agent/10-0", fence.Add(-time.Minute), "10-0", ""
			}),
			want: job.Superseded, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "10-0",
		},
		{
			name:   "a kept outcome still raises the last entry",
			second: with(func(r *job.Row) { r.LastEntryID = "11-0" }),
			want:   job.Kept, stands: "entry:jobs:agent/9-0", output: "answer of entry:jobs:agent/9-0", last: "11-0",
		},
		{
			name: "a newer run of an older entry does not lower the last entry",
			second: with(func(r *job.Row) {
				r.Effect, r.Output, r.Fence, r.EntryID, r.LastEntryID = "run:2", "second", fence.Add(time.Minute), "3-0", "3-0"
			}),
			want: job.Written, stands: "run:2", output: "second", last: "9-0",
		},
		{
			name:   "a row that is not terminal gives way, whatever its effect and fence",
			before: "UPDATE executor_jobs SET status = 'running', fence = fence + 3600000000 WHERE job_id = '%s'",
			second: with(func(r *job.Row) { r.Output = "second" }),
			want:   job.Written, stands: "entry:jobs:agent/9-0", output: "second", last: "9-0",
		},
	} {
		jobID := strings.NewReplacer(" ", "-", "'", "").Replace(tc.name)
		row := first(jobID)
		got := persist(t, db.a, row)
		require.Equal(t, job.Written, got.Verdict, tc.name)
		require.NoError(t, db.a.SetDeadID(t.Context(), row.Key(), row.Effect, "77-0"), tc.name)
		if tc.before != "" {
			runSQL(t, db.a, fmt.Sprintf(tc.before, jobID))
		}

		got = persist(t, db.b, tc.second(row))

		require.Equal(t, tc.want, got.Verdict, tc.name)
		require.Equal(t, stored(t, db.a, row.Key()), got.Row, "%s: the row returned is the row that stands", tc.name)
		require.Equal(t, tc.stands, got.Row.Effect, tc.name)
		require.Equal(t, tc.output, got.Row.Output, tc.name)
		require.Equal(t, tc.last, got.Row.LastEntryID, tc.name)
		if tc.want == job.Written {
			require.Empty(t, got.Row.DeadID, "%s: the dead letter was the other effect's", tc.name)
		} else {
			require.Equal(t, "77-0", got.Row.DeadID, tc.name)
		}
	}
}

// together runs n functions at the same moment and waits for all.
func together(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

func testFirstOutcomes(t *testing.T, db bundle) {
	t.Helper()
	const rounds, callers = 20, 8
	for round := range rounds {
		jobID := fmt.Sprintf("job-%d", round)
		results := make([]job.Persisted, callers)
		errs := make([]error, callers)
		together(callers, func(i int) {
			row := completed(jobID, "entry:jobs:agent/1-0", noon())
			row.Output = fmt.Sprintf("caller %d", i)
			results[i], errs[i] = []*Store{db.a, db.b}[i%2].Persist(t.Context(), row)
		})
		count := map[job.Verdict]int{}
		for i := range callers {
			require.NoError(t, errs[i])
			count[results[i].Verdict]++
			require.Equal(t, results[0].Row, results[i].Row, "all are told the same outcome")
		}
		require.Equal(t, map[job.Verdict]int{job.Written: 1, job.Kept: callers - 1}, count)
	}
}

func testConcurrentEffects(t *testing.T, db bundle) {
	t.Helper()
	const rounds, callers = 20, 8
	for round := range rounds {
		key := job.Key{Role: job.Agent, JobID: fmt.Sprintf("job-%d", round)}
		fence := func(i int) time.Time { return noon().Add(time.Duration(i) * time.Second).Truncate(time.Microsecond) }
		results := make([]job.Persisted, callers)
		errs := make([]error, callers)
		together(callers, func(i int) {
			row := completed(key.JobID, fmt.Sprintf("run:%d", i), fence(i))
			row.EntryID = fmt.Sprintf("%d-0", 10+i)
			results[i], errs[i] = []*Store{db.a, db.b}[i%2].Persist(t.Context(), row)
		})
		for i := range callers {
			require.NoError(t, errs[i])
			switch got := results[i]; got.Verdict {
			case job.Written:
				require.Equal(t, fmt.Sprintf("run:%d", i), got.Row.Effect)
			case job.Superseded:
				require.True(t, got.Row.Fence.After(fence(i)), "superseded by an older run")
			case job.Kept:
				t.Fatal("no two callers had the same effect")
			}
		}
		row := stored(t, db.a, key)
		require.Equal(t, fmt.Sprintf("run:%d", callers-1), row.Effect)
		require.Equal(t, fmt.Sprintf("%d-0", 10+callers-1), row.LastEntryID)
	}
}

func testRoundTrip(t *testing.T, db bundle) {
	t.Helper()
	full := job.Row{
		Role:  job.Chat,
		JobID: "j1",
		Outcome: job.Outcome{
			Status: job.Failed, Output: "o", ErrorCode: "llm_timeout", ErrorMessage: "the model did not answer",
			Model: "m", PromptTokens: 1 << 40, CompletionTokens: 2, Truncated: true, Attempts: 3,
			StartedAt: noon().Add(-time.Second), FinishedAt: noon(),
		},
		WorkflowID: "job:chat:j1", RunID: "r1", Effect: "entry:jobs:chat/1-1", Fence: noon(),
		Stream: "jobs:chat", EntryID: "1-1", LastEntryID: "2-0", DeadID: "3-0",
		NodptWorkflowID: "w", UserID: "u", ProjectID: "p", NodeID: "n", ConnectionID: "c",
		EnqueuedAt: noon().Add(-time.Minute),
	}
	requireFull(t, reflect.ValueOf(full))

	micros := func(at time.Time) time.Time { return at.UTC().Truncate(time.Microsecond) }
	want := full
	want.StartedAt, want.FinishedAt = micros(full.StartedAt), micros(full.FinishedAt)
	want.EnqueuedAt, want.Fence = micros(full.EnqueuedAt), micros(full.Fence)
	require.Equal(t, job.Persisted{Verdict: job.Written, Row: want}, persist(t, db.a, full))
	require.Equal(t, want, stored(t, db.b, full.Key()), "as inserted")

	newer := full
	newer.Effect, newer.Fence, newer.Truncated = "run:2", full.Fence.Add(time.Second), false
	want.Effect, want.Fence = "run:2", micros(newer.Fence)
	want.Truncated = false
	require.Equal(t, job.Persisted{Verdict: job.Written, Row: want}, persist(t, db.b, newer))
	require.Equal(t, want, stored(t, db.a, full.Key()), "as replaced")

	empty := job.Row{Role: job.Agent, JobID: "j2", Outcome: job.Outcome{Status: job.Canceled}, Effect: "run:3"}
	require.Equal(t, job.Persisted{Verdict: job.Written, Row: empty}, persist(t, db.a, empty))
	require.Equal(t, empty, stored(t, db.b, empty.Key()))
	var missing int
	require.NoError(t, db.a.reads.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM executor_jobs "+
		"WHERE enqueued_at IS NULL AND started_at IS NULL AND finished_at IS NULL").Scan(&missing))
	require.Equal(t, 1, missing, "no time is NULL")
}

// requireFull makes sure that a field added to job.Row is not forgotten here.
func requireFull(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if field.Anonymous {
			requireFull(t, v.Field(i))
			continue
		}
		require.False(t, v.Field(i).IsZero(), "the test does not set %s", field.Name)
	}
}

func testBatches(t *testing.T, db bundle) {
	t.Helper()
	const present, absent = 100, 40
	var keys []job.Key
	for i := range present {
		row := completed(fmt.Sprintf("job-%d", i), fmt.Sprintf("run:%d", i), noon())
		row.Role = job.Roles()[i%4]
		persist(t, db.a, row)
		keys = append(keys, row.Key())
	}
	for i := range absent {
		keys = append(keys, job.Key{Role: job.Manager, JobID: fmt.Sprintf("none-%d", i)})
	}
	keys = append(keys, keys[0], job.Key{Role: job.Inspector, JobID: keys[0].JobID})

	rows, err := db.b.Rows(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, rows, present)
	for i, key := range keys[:present] {
		require.Equal(t, fmt.Sprintf("run:%d", i), rows[key].Effect)
	}

	rows, err = db.b.Rows(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, rows)
	_, found, err := db.b.Row(t.Context(), job.Key{Role: job.Chat, JobID: "none"})
	require.NoError(t, err)
	require.False(t, found)
}

func testRaiseEntry(t *testing.T, db bundle) {
	t.Helper()
	row := completed("j", "run:1", noon())
	row.EntryID = "9-5"
	persist(t, db.a, row)
	for _, step := range []struct{ raise, want string }{
		{"9-4", "9-5"},
		{"10-0", "10-0"}, // by number, not by text
		{"9-99", "10-0"},
		{"10-11", "10-11"},
		{"10-2", "10-11"},
		{"", "10-11"},
		{"nonsense", "10-11"},
	} {
		require.NoError(t, db.b.RaiseEntry(t.Context(), row.Key(), step.raise))
		require.Equal(t, step.want, stored(t, db.a, row.Key()).LastEntryID, "after %q", step.raise)
	}
	require.Equal(t, "9-5", stored(t, db.a, row.Key()).EntryID)

	together(8, func(i int) {
		assert.NoError(t, []*Store{db.a, db.b}[i%2].RaiseEntry(t.Context(), row.Key(), fmt.Sprintf("%d-0", 20+i)))
	})
	require.Equal(t, "27-0", stored(t, db.a, row.Key()).LastEntryID)

	none := job.Key{Role: job.Agent, JobID: "none"}
	require.NoError(t, db.a.RaiseEntry(t.Context(), none, "1-0"))
	_, found, err := db.a.Row(t.Context(), none)
	require.NoError(t, err)
	require.False(t, found, "raising creates no row")
}

func testDeadID(t *testing.T, db bundle) {
	t.Helper()
	row := completed("j", "run:1", noon())
	persist(t, db.a, row)
	require.NoError(t, db.b.SetDeadID(t.Context(), row.Key(), "run:other", "1-0"))
	require.Empty(t, stored(t, db.a, row.Key()).DeadID)
	require.NoError(t, db.b.SetDeadID(t.Context(), row.Key(), "run:1", "2-0"))
	require.Equal(t, "2-0", stored(t, db.a, row.Key()).DeadID)
	require.Equal(t, "2-0", persist(t, db.a, row).Row.DeadID, "kept with the outcome")

	persist(t, db.a, completed("j", "run:2", noon().Add(time.Second)))
	require.NoError(t, db.b.SetDeadID(t.Context(), row.Key(), "run:1", "3-0"))
	require.Empty(t, stored(t, db.a, row.Key()).DeadID, "the dead letter of the effect before")

	require.NoError(t, db.a.SetDeadID(t.Context(), job.Key{Role: job.Agent, JobID: "none"}, "run:1", "4-0"))
}

func testKeys(t *testing.T, db bundle) {
	t.Helper()
	jobIDs := []string{
		"job", "JOB", "Job", "job ", "job  ", " job", "job\t",
		"caf\u00e9", "cafe\u0301", "cafe", // composed, decomposed, plain
		"\U0001F600", "\U0001F601", "stra\u00dfe", "strasse", "\u65e5\u672c\u8a9e",
		"a_b", "a%b", "a'b", `a"b`, `a\b`, `a\\b`, "?", "$1", "{{.}}", "0", "00", "1e0",
		strings.Repeat("x", 256), strings.Repeat("x", 255), strings.Repeat("\U0001F600", 64),
	}
	for _, role := range []job.Role{job.Agent, job.Chat} {
		for i, id := range jobIDs {
			row := completed(id, fmt.Sprintf("run:%s-%d", role, i), noon())
			row.Role = role
			require.Equal(t, job.Written, persist(t, db.a, row).Verdict, "%q is a job of its own", id)
		}
	}
	keys := make([]job.Key, 0, len(jobIDs))
	for _, id := range jobIDs {
		keys = append(keys, job.Key{Role: job.Chat, JobID: id})
	}
	rows, err := db.b.Rows(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, rows, len(keys))
	for i, key := range keys {
		require.Equal(t, key.JobID, rows[key].JobID)
		require.Equal(t, fmt.Sprintf("run:chat-%d", i), rows[key].Effect, "%q", key.JobID)
	}
}

func testText(t *testing.T, db bundle) {
	t.Helper()
	row := completed("j\x00b\xff", "run:\x001", noon())
	row.Output = strings.Repeat("ab\x00\U0001F600\xc3(\x1b[31m'\\", 1<<16)
	row.ErrorMessage = strings.Repeat("\u00e9", 1<<16)
	row.Model = strings.Repeat("m", 1<<10)
	row.UserID = "u\x00"
	row.EntryID = strings.Repeat("1", 1<<10)

	got := persist(t, db.a, row).Row
	require.Greater(t, len(got.Output), 1<<20)
	require.Equal(t, strings.Repeat("ab\ufffd\U0001F600\ufffd(\x1b[31m'\\", 1<<16), got.Output)
	require.Equal(t, strings.Repeat("\u00e9", maxMessage/2), got.ErrorMessage)
	require.Len(t, got.Model, maxText)
	require.Equal(t, "u\ufffd", got.UserID)
	require.Equal(t, "run:\ufffd1", got.Effect)

	require.Equal(t, got, stored(t, db.b, row.Key()), "found under the key as it was given")
	require.Equal(t, job.Kept, persist(t, db.b, row).Verdict)
	require.NoError(t, db.b.SetDeadID(t.Context(), row.Key(), row.Effect, "5-0"))
	require.NoError(t, db.b.RaiseEntry(t.Context(), row.Key(), "1-\x00"))
	require.Equal(t, "5-0", stored(t, db.a, row.Key()).DeadID)
}

func testBadRows(t *testing.T, db bundle) {
	t.Helper()
	for name, spoil := range map[string]func(*job.Row){
		"no role":            func(r *job.Row) { r.Role = "" },
		"no job id":          func(r *job.Row) { r.JobID = "" },
		"job id of 257":      func(r *job.Row) { r.JobID = strings.Repeat("x", 257) },
		"no effect":          func(r *job.Row) { r.Effect = "" },
		"effect too long":    func(r *job.Row) { r.Effect = strings.Repeat("x", maxEffect+1) },
		"no status":          func(r *job.Row) { r.Status = "" },
		"status in progress": func(r *job.Row) { r.Status = "running" },
	} {
		row := completed("CANARY", "run:CANARY", noon())
		spoil(&row)
		_, err := db.a.Persist(t.Context(), row)
		require.ErrorIs(t, err, ErrBadRow, name)
		require.NotContains(t, err.Error(), "CANARY", name)
		require.NotContains(t, err.Error(), "DATABASE_URL", name)
	}
}

func testReopen(t *testing.T, dbs databases) {
	t.Helper()
	url := dbs.fresh(t)
	first := open(t, url)
	row := completed("j", "run:1", noon())
	want := persist(t, first, row).Row
	require.NotEmpty(t, first.UUID())
	require.NoError(t, first.Close())

	again := open(t, url)
	require.Equal(t, first.UUID(), again.UUID())
	require.Equal(t, want, stored(t, again, row.Key()))
	require.NotEqual(t, first.UUID(), open(t, dbs.fresh(t)).UUID())
}

func testOpenTogether(t *testing.T, dbs databases) {
	t.Helper()
	url := dbs.fresh(t)
	const processes = 4
	stores := make([]*Store, processes)
	errs := make([]error, processes)
	together(processes, func(i int) {
		stores[i], errs[i] = Open(t.Context(), Config{URL: url}, nil)
	})
	for i := range processes {
		require.NoError(t, errs[i])
		t.Cleanup(func() { assert.NoError(t, stores[i].Close()) })
		require.Equal(t, stores[0].UUID(), stores[i].UUID())
	}
	persist(t, stores[0], completed("j", "run:1", noon()))
	require.Equal(t, job.Kept, persist(t, stores[processes-1], completed("j", "run:1", noon())).Verdict)
}

func testClose(t *testing.T, dbs databases) {
	t.Helper()
	url := dbs.fresh(t)
	s := open(t, url)
	const callers = 64
	errs := make([]error, callers)
	id := func(i int) string { return fmt.Sprintf("job-%d", i) }
	together(callers+1, func(i int) {
		if i == callers {
			assert.NoError(t, s.Close())
			return
		}
		_, errs[i] = s.Persist(t.Context(), completed(id(i), "run:1", noon()))
	})
	_, err := s.Persist(t.Context(), completed("late", "run:1", noon()))
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.RaiseEntry(t.Context(), job.Key{Role: job.Agent, JobID: "late"}, "1-0"), ErrClosed)
	_, _, err = s.Row(t.Context(), job.Key{Role: job.Agent, JobID: "late"})
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.Ping(t.Context()), ErrClosed)
	require.NoError(t, s.Close(), "once more")

	again := open(t, url)
	for i, err := range errs {
		_, found, lookErr := again.Row(t.Context(), job.Key{Role: job.Agent, JobID: id(i)})
		require.NoError(t, lookErr)
		if err == nil {
			require.True(t, found, "what was acknowledged is there")
		} else {
			require.ErrorIs(t, err, ErrClosed)
		}
	}
}

func testCancel(t *testing.T, db bundle) {
	t.Helper()
	row := completed("CANARY", "run:1", noon())
	persist(t, db.a, row)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := db.a.Persist(ended, row)
	require.ErrorIs(t, err, context.Canceled)
	_, err = db.a.Rows(ended, []job.Key{row.Key()})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, db.a.Ping(ended), context.Canceled)

	// Another process holds the row, on SQLite the file.
	holder, err := db.b.writes.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = holder.ExecContext(t.Context(), "UPDATE executor_jobs SET node_id = 'held'")
	require.NoError(t, err)
	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = db.a.Persist(brief, row)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotContains(t, err.Error(), "CANARY")
	require.Empty(t, stored(t, db.a, row.Key()).NodeID, "reads go on meanwhile")
	require.NoError(t, holder.Commit())

	got := persist(t, db.a, row)
	require.Equal(t, job.Kept, got.Verdict)
	require.Equal(t, "held", got.Row.NodeID)
}

func testRawSQL(t *testing.T, dialect string, db bundle) {
	t.Helper()
	row := completed("j", "run:1", noon())
	row.Model = "m"
	persist(t, db.a, row)
	// The columns of DESIGN.md 2.5, in its order.
	rows, err := db.a.reads.QueryContext(t.Context(), `SELECT role, job_id, status, output, error_code, error_message,
		model, prompt_tokens, completion_tokens, truncated, attempts, workflow_id, run_id, effect, fence, stream,
		entry_id, last_entry_id, dead_id, nodpt_workflow_id, user_id, project_id, node_id, connection_id,
		enqueued_at, started_at, finished_at FROM executor_jobs WHERE status = 'completed'`)
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	names, err := rows.Columns()
	require.NoError(t, err)
	require.Equal(t, columns(), names)
	require.True(t, rows.Next())
	require.False(t, rows.Next())
	require.NoError(t, rows.Err())

	var fence int64
	require.NoError(t, db.a.reads.QueryRowContext(t.Context(), "SELECT fence FROM executor_jobs").Scan(&fence))
	require.Equal(t, noon().UnixMicro(), fence)

	list := map[string]string{
		sqliteName:   "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
		postgresName: "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
		mysqlName:    "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()",
	}[dialect]
	require.ElementsMatch(t, []string{"executor_jobs", "executor_meta", "executor_goose_db_version"}, texts(t, db.a.reads, list))
}

func texts(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var text string
		require.NoError(t, rows.Scan(&text))
		out = append(out, text)
	}
	require.NoError(t, rows.Err())
	return out
}

func testQuietErrors(t *testing.T, db bundle) {
	t.Helper()
	quiet := func(err error) {
		t.Helper()
		typed := new(Error)
		require.ErrorAs(t, err, &typed)
		require.Contains(t, err.Error(), "DATABASE_URL")
		require.NotContains(t, err.Error(), "CANARY")
		require.NotContains(t, err.Error(), serverPassword)
	}
	row := completed("CANARY-1", "run:1", noon())
	row.UserID = "CANARY-user"
	persist(t, db.a, row)

	// Someone's own constraint: servers quote the value in their message.
	runSQL(t, db.a, "CREATE UNIQUE INDEX executor_test ON executor_jobs (user_id)")
	row.JobID = "CANARY-2"
	_, err := db.b.Persist(t.Context(), row)
	quiet(err)

	runSQL(t, db.a, "DROP TABLE executor_jobs")
	_, err = db.b.Persist(t.Context(), row)
	quiet(err)
	require.Regexp(t, `SQLSTATE 42P01|error 1146|SQLite result 1\b`, err.Error())
	_, err = db.b.Rows(t.Context(), []job.Key{row.Key()})
	quiet(err)
	quiet(db.b.RaiseEntry(t.Context(), row.Key(), "1-0"))
	quiet(db.b.SetDeadID(t.Context(), row.Key(), "run:1", "1-0"))
}
