package contestant

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/redisd"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
)

const patience = 60 * time.Second

// world is what one test's contestant works with.
type world struct {
	cfg   Config
	ports *proc.Ports
	redis *redis.Client
	llm   *chatLLM
}

func newWorld(t *testing.T, name string) *world {
	t.Helper()
	w := &world{ports: new(proc.Ports)}
	w.cfg = Config{Name: name, HTTP: w.free(t), Database: filepath.Join(t.TempDir(), "rows.db"), AnswerBytes: 100}

	address := w.free(t)
	var port int
	_, err := fmt.Sscanf(address, "127.0.0.1:%d", &port)
	require.NoError(t, err)
	server, err := redisd.Start(t.Context(), redisd.Config{Port: port, LogFile: filepath.Join(t.TempDir(), "redis.log")})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	require.False(t, server.Substitute(), "install redis-server for the tests")
	w.cfg.Redis = server.Address()
	w.redis = redis.NewClient(&redis.Options{Addr: server.Address()})
	t.Cleanup(func() { _ = w.redis.Close() })

	w.llm = newChatLLM(t)
	w.cfg.LLM = w.llm.url
	return w
}

func (w *world) free(t *testing.T) string {
	t.Helper()
	port, err := w.ports.Free(t.Context())
	require.NoError(t, err)
	return proc.Loopback(port)
}

// startTemporal gives the contestant an engine.
func (w *world) startTemporal(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	port, err := w.ports.Free(ctx)
	require.NoError(t, err)
	server, err := temporald.Start(ctx, temporald.Config{Port: port, LogFile: filepath.Join(t.TempDir(), "temporal.log")}, w.ports)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop()) })
	w.cfg.Temporal = server.Address()
}

// start runs the contestant until the end of the test, where it must end without
// an error, and returns when it is ready.
func (w *world) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, w.cfg) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
	w.wait(t, "ready", func(ctx context.Context) error {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("the contestant has ended: %w", err)
		default:
			return proc.HTTPReady("http://" + w.cfg.HTTP + "/ready")(ctx)
		}
	})
}

func (w *world) wait(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, proc.Wait(ctx, check), what)
}

// add puts jobs into the contestant's stream.
func (w *world) add(t *testing.T, jobs ...Job) {
	t.Helper()
	for _, j := range jobs {
		err := w.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: JobsStream(w.cfg.Name), Values: j.Fields()}).Err()
		require.NoError(t, err)
	}
}

// acknowledged waits until so many entries are read and none is pending.
func (w *world) acknowledged(t *testing.T, n int) {
	t.Helper()
	w.wait(t, "all entries acknowledged", func(ctx context.Context) error {
		groups, err := w.redis.XInfoGroups(ctx, JobsStream(w.cfg.Name)).Result()
		if err != nil {
			return err
		}
		if len(groups) != 1 || groups[0].EntriesRead != int64(n) || groups[0].Pending != 0 {
			return fmt.Errorf("groups are %+v", groups)
		}
		return nil
	})
}

// updates waits for so many updates and returns them by job.
func (w *world) updates(t *testing.T, n int) map[string]map[string]any {
	t.Helper()
	var found []redis.XMessage
	w.wait(t, "updates", func(ctx context.Context) (err error) {
		if found, err = w.redis.XRange(ctx, UpdatesStream(w.cfg.Name), "-", "+").Result(); err != nil {
			return err
		}
		if len(found) < n {
			return fmt.Errorf("%d of %d updates so far", len(found), n)
		}
		return nil
	})
	require.Len(t, found, n)
	byJob := map[string]map[string]any{}
	for _, m := range found {
		byJob[m.Values["JobId"].(string)] = m.Values
	}
	return byJob
}

// requireAnswered looks at the updates of completed jobs.
func (w *world) requireAnswered(t *testing.T, jobs []Job) {
	t.Helper()
	updates := w.updates(t, len(jobs))
	for _, j := range jobs {
		u := updates[j.ID]
		require.Regexp(t, `^[0-9a-f-]{36}$`, u["MessageId"])
		require.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z$`, u["Timestamp"])
		delete(u, "MessageId")
		delete(u, "Timestamp")
		require.Equal(t, map[string]any{
			"NodeId": j.NodeID, "ProjectId": j.ProjectID, "UserId": j.UserID, "ClientConnectionId": j.ConnectionID,
			"WorkflowGroup": j.WorkflowID, "Type": "result", "Payload": answerTo(j.Task), "JobId": j.ID, "Role": "agent",
		}, u)
	}
}

// requireRows looks at the rows of completed jobs.
func (w *world) requireRows(t *testing.T, jobs []Job) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+w.cfg.Database+"?_busy_timeout=5000")
	require.NoError(t, err)
	defer func() { _ = db.Close() }()
	for _, j := range jobs {
		var status, output string
		row := db.QueryRowContext(t.Context(), `SELECT status, output FROM executor_jobs WHERE role = 'agent' AND job_id = ?`, j.ID)
		require.NoError(t, row.Scan(&status, &output), j.ID)
		require.Equal(t, "completed", status)
		require.Equal(t, answerTo(j.Task), output)
	}
	var n int
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM executor_jobs`).Scan(&n))
	require.Len(t, jobs, n)
}

// ask sends a request to the contestant and decodes its answer into result, if
// that is not nil.
func (w *world) ask(t *testing.T, method, path string, body, result any) int {
	t.Helper()
	text, err := json.Marshal(body)
	require.NoError(t, err)
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.cfg.HTTP+path, bytes.NewReader(text))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err = io.ReadAll(response.Body)
	require.NoError(t, err)
	if result != nil {
		require.NoError(t, json.Unmarshal(text, result), "%s", text)
	}
	return response.StatusCode
}

func someJobs(n int) []Job {
	jobs := make([]Job, n)
	for i := range jobs {
		jobs[i] = NewJob(fmt.Sprintf("job-%d", i+1), 200, 1000)
	}
	return jobs
}

// chatLLM speaks as much of the chat completions protocol as the contestants use.
type chatLLM struct {
	url string

	mu       sync.Mutex
	refusals map[string]int // job id → how many more calls fail
	calls    map[string]int // task → calls
	open     int            // calls not yet answered
	highest  int            // the most there ever were
	expected int            // how many of them the first answer waits for
	met      chan struct{}  // closed when they are there
}

func newChatLLM(t *testing.T) *chatLLM {
	t.Helper()
	l := &chatLLM{refusals: map[string]int{}, calls: map[string]int{}, met: make(chan struct{})}
	server := httptest.NewServer(http.HandlerFunc(l.serve))
	t.Cleanup(server.Close)
	l.url = server.URL + "/v1/chat/completions"
	return l
}

// refuse makes the next calls for a job fail.
func (l *chatLLM) refuse(j Job, calls int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals[j.ID] = calls
}

// gather makes the first answer wait until so many calls are open.
func (l *chatLLM) gather(calls int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expected = calls
}

func (l *chatLLM) mostAtOnce() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.highest
}

func (l *chatLLM) callsFor(j Job) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[j.Task]
}

func (l *chatLLM) serve(w http.ResponseWriter, r *http.Request) {
	task, err := prompt(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	refused := l.enter(task)
	defer l.leave()
	select {
	case <-l.met:
	case <-r.Context().Done():
		return
	}
	if refused {
		http.Error(w, `{"error":{"message":"overloaded"}}`, http.StatusServiceUnavailable)
		return
	}
	writeJSON(w, map[string]any{
		"object": "chat.completion", "model": "stub",
		"choices": []any{map[string]any{
			"message": map[string]any{"role": "assistant", "content": answerTo(task)}, "finish_reason": "stop",
		}},
		"usage": map[string]any{"prompt_tokens": 3, "completion_tokens": 2},
	})
}

// enter counts a call and reports whether it is to be refused.
func (l *chatLLM) enter(task string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[task]++
	l.open++
	l.highest = max(l.highest, l.open)
	if l.open >= l.expected {
		select {
		case <-l.met:
		default:
			close(l.met)
		}
	}
	id, _, _ := strings.Cut(task, " ")
	l.refusals[id]--
	return l.refusals[id] >= 0
}

func (l *chatLLM) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
}

// prompt returns the prompt of a request as the contestants must send it.
func prompt(r *http.Request) (string, error) {
	var request struct {
		Model     string `json:"model"`
		MaxTokens int    `json:"max_tokens"`
		Messages  []struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		} `json:"messages"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return "", err
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/chat/completions" || request.Model != "trt-llm-agent" ||
		request.MaxTokens != 128 || len(request.Messages) != 1 || request.Messages[0].Role != "user" {
		return "", errors.New("not the request of an agent")
	}
	return request.Messages[0].Content, nil
}

func answerTo(task string) string { return "answer to " + task }
