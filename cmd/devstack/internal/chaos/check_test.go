//go:build chaos

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	"go.temporal.io/api/temporalproto"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

const (
	// restPatience is how long everything may take to come to rest.
	restPatience = 4 * time.Minute
	// readyWithin is the bound of I7 on readiness.
	readyWithin = 15 * time.Second
	// recoverWithin bounds the time from the end of a fault until everything is at
	// rest: the next retry must come within 15 s by I7, and the calls and final steps
	// that follow it take theirs, on a machine that others use, too. A row that has
	// to work off more says so (fault.drains).
	recoverWithin = 60 * time.Second
)

var guarantees = []string{"I1", "I2", "I3", "I4", "I5", "I6", "I7"} //nolint:gochecknoglobals // constant

// findings are the violations of each guarantee.
type findings struct {
	mu  sync.Mutex
	all map[string][]string
}

func (f *findings) add(guarantee, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = map[string][]string{}
	}
	f.all[guarantee] = append(f.all[guarantee], fmt.Sprintf(format, args...))
}

// verdict is what one look from the outside has found.
type verdict struct {
	findings
	jobs, calls, maxCalls int
	recovery              time.Duration
}

// rest waits until everything is at rest and then checks all guarantees, from
// the outside only: streams and pending entries, rows, runs, what the LLM was
// asked, what was logged.
func (w *world) rest(f fault) *verdict {
	w.T.Helper()
	v := &verdict{}
	if w.healed.IsZero() {
		w.heal() // the fault healed itself
	}
	if !f.partial {
		w.atRest(v)
		v.recovery = time.Since(w.healed)
		most := recoverWithin + f.drains
		if f.within != 0 {
			most = f.within
		}
		if v.recovery > most {
			v.add("I7", "at rest %.1f s after the fault was over, not within %s", v.recovery.Seconds(), most)
		}
	}
	w.ready() // those, too, that were started since
	for _, finding := range w.notReady {
		v.add("I7", "%s", finding)
	}
	for _, finding := range w.watched() {
		v.add("I4", "%s", finding)
	}
	w.checkRows(v, f.partial)
	w.checkUpdates(v)
	w.checkRuns(v)
	w.checkDead(v)
	w.checkCalls(v)
	w.checkSecrets(v)
	return v
}

// heal notes that the fault is over, and waits until every executor says that it
// is ready, which it must soon (I7).
func (w *world) heal() {
	w.T.Helper()
	w.healed = time.Now()
	w.ready()
	if d := time.Since(w.healed); d > readyWithin {
		w.notReady = append(w.notReady, fmt.Sprintf("ready %.1f s after the fault was over", d.Seconds()))
	}
}

// ready waits until every executor that ought to be alive says it is ready.
func (w *world) ready() {
	w.T.Helper()
	for _, p := range w.running() {
		ctx, cancel := context.WithTimeout(w.T.Context(), harness.Patience)
		err := p.WaitReady(ctx, proc.HTTPReady(p.Health+"/readyz"))
		cancel()
		if err != nil {
			w.notReady = append(w.notReady, fmt.Sprintf("%s: %v", p.Name(), err))
		}
	}
}

// atRest waits until every entry is acknowledged and every job has its row, its
// updates and no open run.
func (w *world) atRest(v *verdict) {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(w.T.Context(), w.patience())
	defer cancel()
	err := patiently(ctx, func(ctx context.Context) error {
		for _, role := range roles {
			if err := w.drained(ctx, "jobs:"+role); err != nil {
				return err
			}
		}
		return w.done(ctx)
	})
	if err != nil {
		v.add("I1", "not at rest: %v", err)
	}
}

// patience is how long everything may take to come to rest: thousands of jobs
// take their time.
func (w *world) patience() time.Duration {
	return restPatience + time.Duration(len(w.list()))*100*time.Millisecond
}

// patiently is proc.Wait for checks that are expensive: they get a tenth of the
// time.
func patiently(ctx context.Context, check func(context.Context) error) error {
	for {
		began := time.Now()
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last check: %w)", context.Cause(ctx), err)
		case <-time.After(max(100*time.Millisecond, watchShare*time.Since(began))):
		}
	}
}

// drained reports whether a stream has nothing unread and nothing pending.
func (w *world) drained(ctx context.Context, stream string) error {
	info, err := w.Redis.XInfoStream(ctx, stream).Result()
	if err != nil {
		return err
	}
	groups, err := w.Redis.XInfoGroups(ctx, stream).Result()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.Name != harness.Group {
			continue
		}
		if g.Pending != 0 {
			return fmt.Errorf("%s: %d pending", stream, g.Pending)
		}
		// The lag is unknown once entries were deleted.
		if info.LastEntry.ID != "" && less(g.LastDeliveredID, info.LastEntry.ID) {
			return fmt.Errorf("%s: read up to %s of %s", stream, g.LastDeliveredID, info.LastEntry.ID)
		}
		return nil
	}
	return fmt.Errorf("%s has no group", stream)
}

// done reports whether every job has its row and updates, and no run is open.
func (w *world) done(ctx context.Context) error {
	rows, err := w.statuses(ctx)
	if err != nil {
		return err
	}
	updates, err := w.updateCounts(ctx)
	if err != nil {
		return err
	}
	for _, j := range w.list() {
		if j.lost != "" && !j.resent {
			continue
		}
		if !slices.Contains(strings.Split(j.status, "|"), rows[j.key()]) {
			return fmt.Errorf("row of %s: %q, want %q", j.key(), rows[j.key()], j.status)
		}
		if updates[j.key()] < j.updates {
			return fmt.Errorf("%s has %d updates of %d", j.key(), updates[j.key()], j.updates)
		}
	}
	open, err := w.Temporal.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: `ExecutionStatus = "Running"`})
	if err != nil {
		return err
	}
	if open.GetCount() != 0 {
		return fmt.Errorf("%d runs are open", open.GetCount())
	}
	return nil
}

// statuses are the rows' statuses by role/jobId.
func (w *world) statuses(ctx context.Context) (map[string]string, error) {
	rows, err := w.QueryRows(ctx, "SELECT role, job_id, status FROM executor_jobs")
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(rows))
	for _, r := range rows {
		out[fmt.Sprintf("%s/%s", r["role"], r["job_id"])] = fmt.Sprint(r["status"])
	}
	return out, nil
}

// outcome is what a row says.
type outcome struct{ status, output, code, entry, effect string }

// outcomes are the rows by role/jobId.
func (w *world) outcomes(ctx context.Context) (map[string]outcome, error) {
	rows, err := w.QueryRows(ctx, "SELECT role, job_id, status, output, error_code, entry_id, effect FROM executor_jobs")
	if err != nil {
		return nil, err
	}
	out := make(map[string]outcome, len(rows))
	for _, r := range rows {
		out[fmt.Sprintf("%s/%s", r["role"], r["job_id"])] = outcome{
			status: text(r["status"]), output: text(r["output"]), code: text(r["error_code"]),
			entry: text(r["entry_id"]), effect: text(r["effect"]),
		}
	}
	return out, nil
}

// text is a column's value; NULL is no text.
func text(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case []byte:
		return string(v)
	default:
		return fmt.Sprint(v)
	}
}

// updateCounts are the numbers of updates by role/jobId.
func (w *world) updateCounts(ctx context.Context) (map[string]int, error) {
	updates, err := w.updates(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int, len(updates))
	for _, u := range updates {
		out[u.job]++
	}
	return out, nil
}

type update struct{ id, job, kind, payload string }

func (w *world) updates(ctx context.Context) ([]update, error) {
	all, err := w.Redis.XRange(ctx, harness.Updates, "-", "+").Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	out := make([]update, 0, len(all))
	for _, m := range all {
		out = append(out, update{
			id: fmt.Sprint(m.Values["MessageId"]), kind: fmt.Sprint(m.Values["Type"]),
			job: fmt.Sprintf("%s/%s", m.Values["Role"], m.Values["JobId"]), payload: fmt.Sprint(m.Values["Payload"]),
		})
	}
	return out, nil
}

// differs says in what an update differs from the row it tells of; empty is not at
// all.
func (u update) differs(row outcome) string {
	if u.kind == "result" != (row.status == "completed") {
		return fmt.Sprintf("it is told as %s and stored as %s", u.kind, row.status)
	}
	if u.kind == "result" {
		if u.payload != row.output {
			return "another answer is told than stored"
		}
		return ""
	}
	var told struct {
		Code string `json:"code"`
	}
	if err := json.Unmarshal([]byte(u.payload), &told); err != nil {
		return "what is told of its failure cannot be read"
	}
	if told.Code != row.code {
		return fmt.Sprintf("it is told as failed for %s and stored for %s", told.Code, row.code)
	}
	return ""
}

// checkRows: each job has its row, and each row is that of a job or of an entry
// that was to be rejected (I1). No entry has two (I2): that there are no two rows
// of one job is the primary key's doing.
func (w *world) checkRows(v *verdict, partial bool) {
	rows, err := w.QueryRows(w.T.Context(), "SELECT role, job_id, entry_id, status FROM executor_jobs")
	require.NoError(w.T, err)
	status, byEntry := map[string]string{}, map[string]string{}
	for _, r := range rows {
		key, entry := fmt.Sprintf("%s/%s", r["role"], r["job_id"]), fmt.Sprintf("%s/%s", r["role"], r["entry_id"])
		status[key] = fmt.Sprint(r["status"])
		if other := byEntry[entry]; other != "" {
			v.add("I2", "entry %s has the rows %s and %s", entry, other, key)
		}
		byEntry[entry] = key
	}
	jobs := w.list()
	v.jobs = len(jobs)
	for _, j := range jobs {
		is, there := status[j.key()]
		delete(status, j.key())
		switch {
		case j.lost != "" && !j.resent:
			if there {
				v.add("I1", "%s was to be lost and has a row: %s", j.key(), is)
			}
		case !there && !partial:
			v.add("I1", "%s has no row", j.key())
		case there && !slices.Contains(strings.Split(j.status, "|"), is):
			v.add("I1", "%s is %s, not %s", j.key(), is, j.status)
		}
	}
	for _, r := range w.rejections() {
		if is := status[r.row()]; is != "rejected" {
			v.add("I1", "the row of rejected entry %s/%s says %q", r.role, r.entry, is)
		}
		delete(status, r.row())
	}
	for key, is := range status {
		v.add("I1", "%s has a row (%s), and nobody has asked for it", key, is)
	}
}

// row is the key of the row of a rejected entry.
func (r rejection) row() string { return r.role + "/entry:" + r.entry }

// told is the MessageId of the update of a rejected entry.
func (r rejection) told() string { return harness.MessageID("entry:jobs:" + r.role + "/" + r.entry) }

// rejections is a copy of the entries that are to be rejected.
func (w *world) rejections() []rejection {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.rejected)
}

// checkUpdates: each effect was told exactly once, and nothing else was; the last
// that was told of a job is what its row says (I3).
func (w *world) checkUpdates(v *verdict) {
	updates, err := w.updates(w.T.Context())
	require.NoError(w.T, err)
	rows, err := w.outcomes(w.T.Context())
	require.NoError(w.T, err)
	newest := map[string]update{}
	byID, byJob, asked := map[string]int{}, map[string]int{}, map[string]bool{}
	rejected := map[string]string{}
	for _, r := range w.rejections() {
		rejected[r.told()] = r.row()
	}
	for _, j := range w.list() {
		asked[j.key()] = true
	}
	for _, u := range updates {
		byID[u.id]++
		switch {
		case rejected[u.id] != "":
			newest[rejected[u.id]] = u
		case asked[u.job]:
			byJob[u.job]++
			newest[u.job] = u
		default:
			v.add("I3", "update %s is for %s, which nobody has asked for", u.id, u.job)
		}
	}
	for key, u := range newest {
		if row, there := rows[key]; there {
			if why := u.differs(row); why != "" {
				v.add("I3", "%s: %s", key, why)
			}
		}
	}
	for id, n := range byID {
		if n != 1 {
			v.add("I3", "MessageId %s was published %d times", id, n)
		}
	}
	for id := range rejected {
		if byID[id] == 0 {
			v.add("I3", "MessageId %s of a rejected entry was not published", id)
		}
	}
	for _, j := range w.list() {
		n := byJob[j.key()]
		switch {
		case n < j.updates, n > j.updates+j.more:
			v.add("I3", "%s has %d updates, not %d", j.key(), n, j.updates)
		case n == 1 && j.updates+j.more == 1 && j.runs == 1 && !slices.ContainsFunc(j.messages(), func(id string) bool { return byID[id] == 1 }):
			v.add("I3", "the update of %s does not carry the MessageId of its entry", j.key())
		}
	}
}

// messages are the MessageIds that the one update of a job may have.
func (j *jobRecord) messages() []string {
	if !j.resent {
		return []string{harness.MessageID("entry:" + j.stream() + "/" + j.entries[0])}
	}
	last := j.stream() + "/" + j.entries[len(j.entries)-1]
	return []string{harness.MessageID("entry:" + last), harness.MessageID("answer:" + last)}
}

// checkDead: the entry a failed job's row was written for is among the dead
// letters, and only once if the job ran only once. So are rejected entries, and
// nothing else (I1).
func (w *world) checkDead(v *verdict) {
	letters := map[string]int{}
	for _, role := range roles {
		for _, m := range w.DeadLetters(role) {
			letters[role+"/"+fmt.Sprint(m.Values["original_id"])]++
		}
	}
	rows, err := w.QueryRows(w.T.Context(), "SELECT role, job_id, entry_id FROM executor_jobs WHERE status = 'failed'")
	require.NoError(w.T, err)
	entries := make(map[string]string, len(rows))
	for _, r := range rows {
		entries[fmt.Sprintf("%s/%s", r["role"], r["job_id"])] = fmt.Sprintf("%s/%s", r["role"], r["entry_id"])
	}
	for _, j := range w.list() {
		entry, failed := entries[j.key()]
		if n := letters[entry]; failed && (n == 0 || n > 1 && j.runs == 1) {
			v.add("I1", "%s failed and has %d dead letters", j.key(), n)
		}
		for _, id := range j.entries {
			if letters[j.role+"/"+id] > 0 && j.status == "completed" && j.runs <= 1 {
				v.add("I1", "%s never failed and is among the dead letters", j.key())
			}
			delete(letters, j.role+"/"+id)
		}
	}
	for _, r := range w.rejections() {
		if n := letters[r.role+"/"+r.entry]; n != 1 {
			v.add("I1", "rejected entry %s/%s has %d dead letters", r.role, r.entry, n)
		}
		delete(letters, r.role+"/"+r.entry)
	}
	for entry := range letters {
		v.add("I1", "dead letter of %s, which nobody has submitted", entry)
	}
}

// checkRuns: no job has more runs than it needs (I2: one job, one run), and
// nothing else has any.
func (w *world) checkRuns(v *verdict) {
	runs, err := w.runs(w.T.Context())
	require.NoError(w.T, err)
	byID, seen := map[string]int{}, map[string]bool{}
	for _, r := range runs {
		// Pages of a list that changes may repeat a run.
		if id := r.GetExecution(); !seen[id.GetRunId()] {
			seen[id.GetRunId()] = true
			byID[id.GetWorkflowId()]++
		}
	}
	for _, j := range w.list() {
		if n := byID[j.workflowID()]; n > j.runs {
			v.add("I2", "%s has %d runs, not at most %d", j.workflowID(), n, j.runs)
		}
		delete(byID, j.workflowID())
	}
	for id := range byID {
		v.add("I2", "run of %s, which nobody has asked for", id)
	}
}

func (w *world) runs(ctx context.Context) ([]*workflowpb.WorkflowExecutionInfo, error) {
	var out []*workflowpb.WorkflowExecutionInfo
	var page []byte
	for {
		found, err := w.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000, NextPageToken: page})
		if err != nil {
			return nil, err
		}
		out = append(out, found.GetExecutions()...)
		if page = found.GetNextPageToken(); len(page) == 0 {
			return out, nil
		}
	}
}

// checkCalls: nobody pays twice without a fault (I5).
func (w *world) checkCalls(v *verdict) {
	stats := w.LLM.Stats()
	v.calls = stats.Calls
	unknown := stats.Calls
	for _, j := range w.list() {
		n := stats.Asked(j.asked())
		unknown -= n
		v.maxCalls = max(v.maxCalls, n)
		if n > j.calls {
			v.add("I5", "%s was asked %d times, not at most %d", j.key(), n, j.calls)
		}
	}
	if unknown != 0 {
		v.add("I5", "%d calls are for no job", unknown)
	}
}

// checkSecrets: no content in logs, metrics and what Temporal shows of a run
// without its payloads (I6). The harness reads the logs again when they are
// complete.
func (w *world) checkSecrets(v *verdict) {
	logs, err := filepath.Glob(filepath.Join(w.Dir, "executor-*.log"))
	require.NoError(w.T, err)
	for _, name := range logs {
		f, err := os.Open(name)
		require.NoError(w.T, err)
		lines := bufio.NewReader(f)
		for {
			line, err := lines.ReadString('\n')
			if strings.Contains(line, harness.Canary) {
				v.add("I6", "%s: %.300s", filepath.Base(name), line)
			}
			if err != nil {
				break
			}
		}
		require.NoError(w.T, f.Close())
	}
	for _, p := range w.running() {
		if text := w.get(p.Health + "/metrics"); strings.Contains(text, harness.Canary) {
			v.add("I6", "metrics of %s hold content", p.Name())
		}
	}
	runs, err := w.runs(w.T.Context())
	require.NoError(w.T, err)
	for _, r := range runs {
		text, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(r)
		require.NoError(w.T, err)
		if strings.Contains(string(text), harness.Canary) {
			v.add("I6", "visibility of %s holds content", r.GetExecution().GetWorkflowId())
		}
	}
	w.checkErrorTexts(v, runs)
}

// checkErrorTexts: what people are told of failures holds no content either: in
// rows, updates and dead letters, and of each attempt in Temporal's histories.
func (w *world) checkErrorTexts(v *verdict, runs []*workflowpb.WorkflowExecutionInfo) {
	rows, err := w.QueryRows(w.T.Context(), "SELECT role, job_id FROM executor_jobs WHERE error_message LIKE ?", "%"+harness.Canary+"%")
	require.NoError(w.T, err)
	for _, r := range rows {
		v.add("I6", "error_message of %s/%s holds content", r["role"], r["job_id"])
	}
	updates, err := w.Redis.XRange(w.T.Context(), harness.Updates, "-", "+").Result()
	require.NoError(w.T, err)
	for _, m := range updates {
		if m.Values["Type"] == "error" && strings.Contains(fmt.Sprint(m.Values["Payload"]), harness.Canary) {
			v.add("I6", "update %s tells content as an error", m.ID)
		}
	}
	for _, role := range roles {
		for _, m := range w.DeadLetters(role) {
			if strings.Contains(fmt.Sprint(m.Values["error"], m.Values["reason"]), harness.Canary) {
				v.add("I6", "the error of dead letter %s of %s holds content", m.ID, role)
			}
		}
	}
	for _, r := range runs[:min(len(runs), manyRuns)] {
		id := r.GetExecution()
		events := w.Temporal.GetWorkflowHistory(w.T.Context(), id.GetWorkflowId(), id.GetRunId(), false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
		for events.HasNext() {
			event, err := events.Next()
			if err != nil {
				break // the fault took the history
			}
			for _, failure := range []*failurepb.Failure{
				event.GetActivityTaskStartedEventAttributes().GetLastFailure(),
				event.GetActivityTaskFailedEventAttributes().GetFailure(),
				event.GetMarkerRecordedEventAttributes().GetFailure(),
				event.GetWorkflowExecutionFailedEventAttributes().GetFailure(),
				event.GetWorkflowTaskFailedEventAttributes().GetFailure(),
			} {
				if strings.Contains(failure.String(), harness.Canary) {
					v.add("I6", "event %d of %s fails with content", event.GetEventId(), id.GetWorkflowId())
				}
			}
		}
	}
}

// manyRuns is how many histories are looked into.
const manyRuns = 200

func (w *world) get(url string) string {
	w.T.Helper()
	req, err := http.NewRequestWithContext(w.T.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(w.T, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(w.T, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(w.T, err)
	return string(text)
}

// counted adds up the samples of a metric whose labels include these, each as
// name="value".
func (w *world) counted(p *process, metric string, labels ...string) float64 {
	w.T.Helper()
	var sum float64
	for line := range strings.Lines(w.get(p.Health + "/metrics")) {
		name, rest, _ := strings.Cut(line, "{")
		value := rest[strings.LastIndexByte(rest, ' ')+1:]
		if name != metric || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		require.NoError(w.T, err)
		sum += n
	}
	return sum
}

// watcher looks at the order of things all the time (I4). It reads what is
// acknowledged, then the updates, then the rows: whatever the first look shows
// implies something about the next, however much happens in between.
type watcher struct {
	w     *world
	end   context.CancelFunc
	done  chan struct{}
	found findings

	looking sync.Mutex // held during a look
	looks   int        // complete ones at a system with jobs
}

// watchEvery is the time between two looks; watchShare bounds what share of all
// time they may take.
const (
	watchEvery = 250 * time.Millisecond
	watchShare = 10
)

func watch(w *world) *watcher {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.T.Context()))
	o := &watcher{w: w, end: cancel, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		pause := watchEvery
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
				began := time.Now()
				o.look(ctx)
				pause = max(watchEvery, watchShare*time.Since(began))
			}
		}
	}()
	w.T.Cleanup(func() { o.stop() })
	return o
}

// unwatched does something to what the watcher looks at, between two looks: one
// that began before would compare two different worlds. It has looked at the one
// before.
func (w *world) unwatched(change func()) {
	w.watcher.look(w.T.Context())
	w.watcher.looking.Lock()
	defer w.watcher.looking.Unlock()
	change()
}

// watched ends the watching and returns what was found. A watcher that never saw
// jobs has shown nothing, so that it takes a last look; one that still cannot is a
// finding of its own.
func (w *world) watched() []string {
	found := w.watcher.stop()
	if w.watcher.looks == 0 && len(w.list()) > 0 {
		w.watcher.look(w.T.Context())
		found = w.watcher.stop()
	}
	w.T.Logf("the order was looked at %d times", w.watcher.looks)
	if w.watcher.looks == 0 && len(w.list()) > 0 {
		found = append(found, "nobody could look at the order")
	}
	return found
}

func (o *watcher) stop() []string {
	o.end()
	<-o.done
	o.found.mu.Lock()
	defer o.found.mu.Unlock()
	return o.found.all["I4"]
}

// look is one look. Parts of the system that are away are looked at later.
func (o *watcher) look(ctx context.Context) {
	o.looking.Lock()
	defer o.looking.Unlock()
	seen := sight{acked: map[string]bool{}, told: map[string]bool{}, byJob: map[string]bool{}, letters: map[string]bool{}}
	for _, role := range roles {
		if !o.acked(ctx, "jobs:"+role, seen.acked) {
			return
		}
	}
	updates, err := o.w.updates(ctx)
	if err != nil {
		return
	}
	for _, u := range updates {
		seen.told[u.id] = true
		seen.byJob[u.job] = true
	}
	for _, role := range roles {
		letters, err := o.w.Redis.XRange(ctx, "jobs:"+role+":dead", "-", "+").Result()
		if err != nil {
			return
		}
		for _, l := range letters {
			seen.letters[role+"/"+fmt.Sprint(l.Values["original_id"])] = true
		}
	}
	if seen.rows, err = o.w.outcomes(ctx); err != nil {
		return
	}
	jobs := o.w.list()
	if len(jobs) > 0 {
		o.looks++
	}
	for _, j := range jobs {
		if j.lost != "" && !j.resent {
			continue // somebody else has acknowledged it, if it is there at all
		}
		o.w.mu.Lock()
		entries := slices.Clone(j.entries)
		o.w.mu.Unlock()
		o.once(seen.job(j, entries)...)
	}
	for _, r := range o.w.rejections() {
		o.once(seen.rejection(r)...)
	}
}

// sight is what one look has seen, in the order of the fields.
type sight struct {
	acked   map[string]bool // role/entry
	told    map[string]bool // by MessageId
	byJob   map[string]bool // told, by role/jobId
	letters map[string]bool // role/entry
	rows    map[string]outcome
}

// job is what was done in the wrong order with a job, one of whose entries is
// acknowledged when its own update is out, or when it is a duplicate: of an entry that
// was told of, or that is not acknowledged because its run is open.
func (s sight) job(j *jobRecord, entries []string) (wrong []string) {
	open := slices.ContainsFunc(entries, func(id string) bool { return !s.acked[j.role+"/"+id] })
	for _, id := range entries {
		if s.acked[j.role+"/"+id] && !s.byJob[j.key()] && !open {
			wrong = append(wrong, fmt.Sprintf("%s was acknowledged before its update (%s)", j.key(), id))
		}
	}
	row, there := s.rows[j.key()]
	if s.byJob[j.key()] && !there {
		wrong = append(wrong, j.key()+" was published before its row")
	}
	// The row was written for one entry. Of a run that a person started the same entry
	// may have been acknowledged earlier.
	if own := "entry:" + j.stream() + "/" + row.entry; there && row.effect == own {
		wrong = append(wrong, s.closed(j.key(), j.role+"/"+row.entry, harness.MessageID(own), row.status == "failed")...)
	}
	return wrong
}

// rejection is the same for an entry that is no job.
func (s sight) rejection(r rejection) []string {
	_, there := s.rows[r.row()]
	if s.told[r.told()] && !there {
		return []string{r.row() + " was published before its row"}
	}
	return s.closed(r.row(), r.role+"/"+r.entry, r.told(), true)
}

// closed is what was not done before the entry of a row was acknowledged.
func (s sight) closed(row, entry, message string, letter bool) (wrong []string) {
	if !s.acked[entry] {
		return nil
	}
	if !s.told[message] {
		wrong = append(wrong, fmt.Sprintf("%s was acknowledged (%s) before its own update", row, entry))
	}
	if letter && !s.letters[entry] {
		wrong = append(wrong, fmt.Sprintf("%s was acknowledged (%s) before its dead letter", row, entry))
	}
	return wrong
}

// once notes what is not known yet.
func (o *watcher) once(wrong ...string) {
	for _, text := range wrong {
		if !slices.Contains(o.found.all["I4"], text) {
			o.found.add("I4", "%s", text)
		}
	}
}

// acked collects the entries of a stream that were delivered and are not
// pending, as role/id.
func (o *watcher) acked(ctx context.Context, stream string, into map[string]bool) bool {
	role := strings.TrimPrefix(stream, "jobs:")
	// One transaction: an entry read between two looks must not seem acknowledged.
	pipe := o.w.Redis.TxPipeline()
	groups := pipe.XInfoGroups(ctx, stream)
	entries := pipe.XRange(ctx, stream, "-", "+")
	pending := pipe.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: stream, Group: harness.Group, Start: "-", End: "+", Count: 100_000})
	if _, err := pipe.Exec(ctx); err != nil {
		return false
	}
	var last string
	for _, g := range groups.Val() {
		if g.Name == harness.Group {
			last = g.LastDeliveredID
		}
	}
	open := map[string]bool{}
	for _, p := range pending.Val() {
		open[p.ID] = true
	}
	for _, e := range entries.Val() {
		if !open[e.ID] && !less(last, e.ID) {
			into[role+"/"+e.ID] = true
		}
	}
	return true
}

// less compares two entry ids.
func less(a, b string) bool {
	var ams, aseq, bms, bseq uint64
	_, _ = fmt.Sscanf(a, "%d-%d", &ams, &aseq)
	_, _ = fmt.Sscanf(b, "%d-%d", &bms, &bseq)
	return ams < bms || ams == bms && aseq < bseq
}
