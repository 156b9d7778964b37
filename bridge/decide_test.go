package bridge

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/stream"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	row := func(status job.Status, entry, last string, age time.Duration) *job.Row {
		return &job.Row{
			Outcome: job.Outcome{Status: status, FinishedAt: now.Add(-age)},
			EntryID: entry, LastEntryID: last,
		}
	}
	for name, tc := range map[string]struct {
		entry    string
		rejected bool
		row      *job.Row
		want     action
	}{
		"unknown job":                               {"5-0", false, nil, actStart},
		"not a job":                                 {"5-0", true, nil, actReject},
		"rejected before":                           {"5-0", true, row(job.Rejected, "5-0", "5-0", time.Minute), actFinish},
		"rejected long ago":                         {"5-0", true, row(job.Rejected, "5-0", "5-0", stream.PublishTTL), actForget},
		"own entry of a completed job":              {"5-0", false, row(job.Completed, "5-0", "5-0", time.Minute), actFinish},
		"own entry of a failed job":                 {"5-0", false, row(job.Failed, "5-0", "5-0", time.Minute), actFinish},
		"own entry, although a newer one came":      {"5-0", false, row(job.Completed, "5-0", "9-0", time.Minute), actFinish},
		"own entry just before the key may be gone": {"5-0", false, row(job.Completed, "5-0", "5-0", stream.PublishTTL/2-time.Second), actFinish},
		"own entry when the key may be gone":        {"5-0", false, row(job.Completed, "5-0", "5-0", stream.PublishTTL/2), actForget},
		"the last entry, answered long ago":         {"7-0", false, row(job.Completed, "5-0", "7-0", stream.PublishTTL/2), actOld},
		"older than the row's entry":                {"4-7", false, row(job.Completed, "5-0", "5-0", time.Minute), actOld},
		"older than the row's entry, failed":        {"4-7", false, row(job.Failed, "5-0", "5-0", time.Minute), actOld},
		"between the row's entry and the last":      {"6-0", false, row(job.Failed, "5-0", "7-0", time.Minute), actOld},
		"the last entry, answered before":           {"7-0", false, row(job.Completed, "5-0", "7-0", time.Minute), actAnswer},
		"passed over by the last one":               {"6-0", false, row(job.Completed, "5-0", "7-0", time.Minute), actAnswer},
		"ids are numbers, not texts":                {"10-0", false, row(job.Completed, "9-0", "9-0", time.Minute), actAnswer},
		"sequence numbers count":                    {"5-10", false, row(job.Completed, "5-9", "5-9", time.Minute), actAnswer},
		"newer, completed":                          {"6-0", false, row(job.Completed, "5-0", "5-0", time.Minute), actAnswer},
		"newer, completed long ago":                 {"6-0", false, row(job.Completed, "5-0", "5-0", 10*stream.PublishTTL), actAnswer},
		"newer, failed":                             {"6-0", false, row(job.Failed, "5-0", "5-0", time.Minute), actRetry},
		"newer, canceled":                           {"6-0", false, row(job.Canceled, "5-0", "5-0", time.Minute), actRetry},
		"newer, rejected":                           {"6-0", false, row(job.Rejected, "5-0", "5-0", time.Minute), actRetry},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, decide(tc.entry, tc.rejected, tc.row, now))
		})
	}
}

func TestEntriesOfTheTimeOfTheRunAreDuplicates(t *testing.T) {
	t.Parallel()
	const entry = 1_700_000_000_000                     // by the clock of Redis
	started := time.UnixMilli(entry).Add(3 * time.Hour) // by Temporal's, or after a long wait
	id := func(after time.Duration) string { return strconv.FormatInt(entry+after.Milliseconds(), 10) + "-0" }
	row := func(status job.Status, first string) *job.Row {
		return &job.Row{
			Outcome: job.Outcome{Status: status, StartedAt: started, FinishedAt: started.Add(time.Minute)},
			EntryID: first, LastEntryID: first,
		}
	}
	unstarted := row(job.Failed, id(0))
	unstarted.StartedAt = time.Time{}
	reset := func(status job.Status) *job.Row {
		r := row(status, id(0)) // its times are those of the first run's history
		r.Effect = job.RunEffect("b7")
		return r
	}
	now := started.Add(time.Hour)
	for name, tc := range map[string]struct {
		entry string
		row   *job.Row
		want  action
	}{
		"a moment later":                   {id(time.Millisecond), row(job.Failed, id(0)), actOld},
		"a moment later, completed":        {id(time.Millisecond), row(job.Completed, id(0)), actOld},
		"ids stand still":                  {id(0)[:14] + "1", row(job.Failed, id(0)), actRetry},
		"ids stand still, completed":       {id(0)[:14] + "1", row(job.Completed, id(0)), actAnswer},
		"ids stand still at another entry": {id(time.Second)[:14] + "7", row(job.Failed, id(0)), actRetry},
		"an id in the future":              {id(4*time.Hour + time.Millisecond), row(job.Failed, id(4*time.Hour)), actRetry},
		"clocks differ a little":           {id(3*time.Hour + 2*time.Second), row(job.Failed, id(3*time.Hour+time.Second)), actOld},
		"before the end":                   {id(time.Minute - time.Millisecond), row(job.Failed, id(0)), actOld},
		"at the end":                       {id(time.Minute), row(job.Failed, id(0)), actRetry},
		"after the end":                    {id(time.Minute + time.Second), row(job.Failed, id(0)), actRetry},
		"after the end, completed":         {id(time.Minute + time.Second), row(job.Completed, id(0)), actAnswer},
		"ids are numbers":                  {"6-0", row(job.Failed, "5-0"), actRetry},
		"the run began unseen":             {id(time.Second), unstarted, actRetry},
		"before a reset":                   {id(time.Second), reset(job.Failed), actRetry},
		"before a reset that completed":    {id(time.Second), reset(job.Completed), actAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, decide(tc.entry, false, tc.row, now))
		})
	}
}

func TestBefore(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"5-3": "5-2",
		"5-0": "4-18446744073709551615",
		"0-1": "0-0",
		"0-0": "0",
		"":    "0",
		"x-1": "0",
	} {
		require.Equal(t, want, before(id), id)
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	distinct := map[string]struct{}{
		RequestID("jobs:agent", "5-0"):        {},
		RequestID("jobs:agent", "5-1"):        {},
		RequestID("jobs:chat", "5-0"):         {},
		repeatID("jobs:agent", "5-0", "run1"): {},
		repeatID("jobs:agent", "5-0", "run2"): {},
	}
	require.Len(t, distinct, 5)
	// Pinned: entries in flight during an upgrade must get their runs back.
	require.Equal(t, "89e27b22-345f-5055-9387-8378cb0462b7", RequestID("jobs:agent", "1700000000000-0"))
}

func TestConfigErrorsNameTheSetting(t *testing.T) {
	t.Parallel()
	_, err := New(Config{}, nil, nil, nil, nil, quiet())
	require.ErrorContains(t, err, "BRIDGE_MAX_IN_FLIGHT")
	require.ErrorContains(t, err, "CLAIM_MIN_IDLE")
}

func TestBackoffGrowsAndStaysBounded(t *testing.T) {
	t.Parallel()
	b, err := New(Config{MaxInFlight: 1, ClaimMinIdle: time.Minute, Updates: "u"}, nil, nil, nil, nil, quiet())
	require.NoError(t, err)
	l := b.lane(job.Agent)
	for attempts, limit := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 6: 3200 * time.Millisecond,
		7: 5 * time.Second, 16: 5 * time.Second, 1000: 5 * time.Second,
	} {
		d := l.backoff(attempts)
		require.LessOrEqual(t, d, limit)
		require.GreaterOrEqual(t, d, limit/2)
	}
}
