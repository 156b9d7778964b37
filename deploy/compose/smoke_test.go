//go:build compose

package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

// sent is a job that was submitted.
type sent struct {
	role   job.Role
	id     string
	task   string
	fields []string // beside jobId and task
	status string   // it must end with
}

func (s sent) key() string { return string(s.role) + "/" + s.id }

// smoke is the running project and what has been sent to it.
type smoke struct {
	*engine
	ui   string
	jobs []sent
}

// TestComposeLosesNothing brings the file up as it is and treats it as people and
// machines do: scales, stops, kills and restarts its parts while jobs run, and
// takes it down and up again. In the end every job has one row and one update,
// and nothing is pending.
func TestComposeLosesNothing(t *testing.T) { //nolint:paralleltest // the only test of this package
	s := &smoke{engine: newEngine(t)}
	s.images(t)
	s.step(t, "build", func() { s.compose(t, "build") })
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			state, _ := s.input(ctx, nil, s.composeArgs("ps", "--all")...)
			logs, _ := s.input(ctx, nil, s.composeArgs("logs", "--no-color", "--tail", "40")...)
			t.Logf("%s\n%s", state, logs)
		}
		require.NoError(t, s.down(ctx))
	})
	s.step(t, "up", func() { s.compose(t, "up", "--detach", "--wait", "--wait-timeout", "120") })
	s.ui = "http://" + s.compose(t, "port", "temporal", "8233")
	s.hardened(t, 11, "temporal") // 4 of others, mock-llm, bridge and five workers
	s.setUp(t)
	s.compose(t, "up", "--detach", "prometheus") // scrapes while the rest goes on
	s.hardened(t, 12, "prometheus", "temporal")

	s.step(t, "all roles", func() { s.allRoles(t) })
	s.step(t, "scale", func() { s.scale(t) })
	s.step(t, "stop and kill", func() { s.stopOne(t); s.killOne(t) })
	s.step(t, "restart redis and temporal", func() { s.restart(t) })
	s.step(t, "metrics", func() { s.metrics(t) })
	s.step(t, "down and up", func() { s.downAndUp(t) })
	s.step(t, "documented commands", func() { s.documented(t) })
	s.step(t, "books", func() { s.books(t) })
	s.nodpt(t)
	s.step(t, "beside a NodPT", func() { s.joins(t) })
}

func (*smoke) step(t *testing.T, name string, do func()) {
	t.Helper()
	began := time.Now()
	do()
	took(t, name, began)
}

func took(t *testing.T, what string, began time.Time) {
	t.Helper()
	t.Logf("%-52s %5.1f s", what, time.Since(began).Seconds())
}

// images makes sure that every image the project is built from or runs is there:
// pulled where that is possible, else a stand-in.
func (s *smoke) images(t *testing.T) {
	t.Helper()
	names := strings.Fields(s.compose(t, "--profile", "observability", "config", "--images"))
	for _, m := range regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(string(read(t, filepath.Join(root, "deploy", "Dockerfile"))), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if _, err := s.input(t.Context(), nil, "image", "inspect", name); err == nil {
			continue
		}
		if !s.own {
			if _, err := s.input(t.Context(), nil, "pull", "--quiet", name); err == nil {
				continue
			}
		}
		began := time.Now()
		i := standIn(t, name)
		if i == nil {
			continue // built here, or not part of this test
		}
		i.importAs(t, s.engine, name)
		took(t, "stand-in "+name, began)
		t.Cleanup(func() {
			_, err := s.input(context.WithoutCancel(t.Context()), nil, "image", "rm", "--force", name)
			require.NoError(t, err)
		})
	}
}

// hardened checks every container, of which there are n: what it may do, and that
// these services alone publish a port, on loopback.
func (s *smoke) hardened(t *testing.T, n int, published ...string) {
	t.Helper()
	type container struct {
		Name   string
		Config struct {
			Image, User string
			Labels      map[string]string
		}
		State struct {
			ExitCode int
			Running  bool
		}
		HostConfig struct {
			ReadonlyRootfs       bool
			CapDrop, SecurityOpt []string
			Memory, PidsLimit    int64
			PortBindings         map[string][]struct{ HostIP, HostPort string }
		}
	}
	ids := strings.Fields(s.compose(t, "--profile", "observability", "ps", "--all", "--quiet"))
	var containers []container
	require.NoError(t, json.Unmarshal([]byte(s.docker(t, append([]string{"inspect"}, ids...)...)), &containers))
	require.Len(t, containers, n)
	var publishing []string
	for _, c := range containers {
		require.True(t, c.HostConfig.ReadonlyRootfs, c.Name)
		require.Equal(t, []string{"ALL"}, c.HostConfig.CapDrop, c.Name)
		require.Contains(t, c.HostConfig.SecurityOpt, "no-new-privileges:true", c.Name)
		require.NotContains(t, []string{"", "0", "root"}, c.Config.User, c.Name)
		require.EqualValues(t, 1024, c.HostConfig.PidsLimit, c.Name)
		if strings.HasPrefix(c.Config.Image, "nodpt/executor:") {
			require.EqualValues(t, 512<<20, c.HostConfig.Memory, c.Name)
		}
		require.True(t, c.State.Running || c.State.ExitCode == 0, c.Name)
		for port, bindings := range c.HostConfig.PortBindings {
			publishing = append(publishing, c.Config.Labels["com.docker.compose.service"])
			for _, b := range bindings {
				require.Equal(t, "127.0.0.1", b.HostIP, "%s: %s", c.Name, port)
			}
		}
	}
	require.ElementsMatch(t, published, publishing)
}

// setUp checks what the one-shot service has done, and that nothing is missing.
func (s *smoke) setUp(t *testing.T) {
	t.Helper()
	var namespace struct {
		Config struct {
			WorkflowExecutionRetentionTTL string `json:"workflowExecutionRetentionTtl"`
		} `json:"config"`
	}
	s.get(t, "", &namespace)
	require.Equal(t, "2592000s", namespace.Config.WorkflowExecutionRetentionTTL)
	s.compose(t, "exec", "-T", "bridge", "/executor", "doctor") // fails where it finds a problem
}

func (s *smoke) allRoles(t *testing.T) {
	t.Helper()
	s.submit(t,
		sent{role: job.Manager, id: "manager-1", task: "!echo a plan", status: "completed"},
		sent{role: job.Inspector, id: "inspector-1", task: "look", fields: []string{"payload", `{"k":1}`}, status: "completed"},
		sent{role: job.Agent, id: "agent-1", task: "!fail 503 x2", status: "completed"},
		sent{role: job.Agent, id: "agent-2", task: "!fail 400", status: "failed"},
		sent{role: job.Chat, id: "chat-1", task: "hello", status: "completed"},
	)
	// As the head of the file says.
	output := s.compose(t, "run", "--rm", "--no-deps", "-T", "cli", "submit", "--role", "agent", "--task", "!echo from a person", "--job-id", "agent-3", "--wait")
	require.Equal(t, "from a person", output)
	s.jobs = append(s.jobs, sent{role: job.Agent, id: "agent-3", status: "completed"})
	s.ended(t)

	var found struct {
		Count string `json:"count"`
	}
	s.get(t, "/workflow-count?query="+url.QueryEscape(`JobRole = "agent" AND ExecutionStatus = "Completed"`), &found)
	require.Equal(t, "2", found.Count, "the search attributes are not set")
}

// scale adds two processes to worker-agent and sees all three take work.
func (s *smoke) scale(t *testing.T) {
	t.Helper()
	s.compose(t, "up", "--detach", "--wait", "--no-recreate", "--scale", "worker-agent=3")
	replicas := s.containers(t, "worker-agent")
	require.Len(t, replicas, 3)
	share := map[string]int{}
	for batch := 0; len(share) < len(replicas); batch++ {
		require.Less(t, batch, 10, "only %v took work", share)
		jobs := s.series(fmt.Sprintf("scale-%d", batch), 12, "!slow 1s")
		s.submit(t, jobs...)
		s.ended(t)
		for _, j := range jobs {
			calls := s.calls(t, j)
			require.Len(t, calls, 1)
			require.Contains(t, replicas, calls[0].container)
			share[calls[0].container]++
		}
	}
	t.Logf("jobs of each of the three: %v", share)
}

// stopOne stops a process in the middle of a call: it finishes the call.
func (s *smoke) stopOne(t *testing.T) {
	t.Helper()
	j := s.series("stopped", 1, "!slow 6s")[0]
	s.submit(t, j)
	holder := s.holder(t, j)
	began := time.Now()
	s.docker(t, "stop", "--time", "90", holder)
	s.ended(t)
	calls := s.calls(t, j)
	require.Len(t, calls, 1)
	require.Equal(t, holder, calls[0].container)
	require.True(t, calls[0].ended.After(began), "the call had ended before the stop")
	require.Equal(t, "0", s.docker(t, "inspect", "--format", "{{.State.ExitCode}}", holder))
}

// killOne kills a process in the middle of a call: another one takes over.
func (s *smoke) killOne(t *testing.T) {
	t.Helper()
	j := s.series("killed", 1, "!slow 5s")[0]
	s.submit(t, j)
	holder := s.holder(t, j)
	s.docker(t, "kill", holder)
	s.ended(t)
	calls := s.calls(t, j)
	require.Len(t, calls, 1, "the history shows the attempt that counted")
	require.NotEqual(t, holder, calls[0].container)
	require.Equal(t, "2", s.value(t, "select attempts from executor_jobs where job_id = '"+j.id+"'"))
}

// restart takes Redis and Temporal away while calls run and jobs wait.
func (s *smoke) restart(t *testing.T) {
	t.Helper()
	jobs := append(s.series("restart", 6, "!slow 2s"), sent{role: job.Manager, id: "restart-m", task: "!slow 3s", status: "completed"})
	s.submit(t, jobs...)
	s.holder(t, jobs[0])
	s.compose(t, "restart", "redis", "temporal")
	await(t, 30*time.Second, "Redis is back", func() error {
		_, err := s.redisCommands(t.Context(), "PING")
		return err
	})
	s.submit(t, s.series("restarted", 6, "!slow 1s")...)
	s.ended(t)
}

// downAndUp removes all containers while a call runs, and brings them back.
func (s *smoke) downAndUp(t *testing.T) {
	t.Helper()
	jobs := s.series("down", 4, "!slow 3s")
	s.submit(t, jobs...)
	s.holder(t, jobs[0])
	s.compose(t, "--profile", "observability", "down", "--timeout", "90")
	s.compose(t, "up", "--detach", "--wait", "--wait-timeout", "120")
	s.ended(t)
}

// books compares what was sent with what came of it.
func (s *smoke) books(t *testing.T) {
	t.Helper()
	rows, updates := s.rows(t), s.updates(t)
	require.Len(t, rows, len(s.jobs))
	for _, j := range s.jobs {
		require.Equal(t, []string{j.status}, rows[j.key()], j.key())
		want := "result"
		if j.status != "completed" {
			want = "error"
		}
		require.Equal(t, []string{want}, updates[j.key()], j.key())
	}
	for _, role := range job.Roles() {
		pending := s.redis(t, "XPENDING "+role.Stream()+" executor-group")
		require.Regexp(t, `^0\b`, pending, role)
	}
	require.Equal(t, "1", s.redis(t, "XLEN jobs:agent:dead"))
	t.Logf("%d jobs, each with one row and one update, all acknowledged", len(s.jobs))
}

// metrics asks Prometheus, which finds the processes by their services' names.
func (s *smoke) metrics(t *testing.T) {
	t.Helper()
	await(t, 60*time.Second, "Prometheus sees every service", func() error {
		answer := s.compose(t, "exec", "-T", "prometheus", "promtool", "query", "instant",
			"http://127.0.0.1:9090", `up{job=~"executor-.*"} == 1`)
		for _, service := range []string{"bridge", "worker-workflows", "worker-manager", "worker-inspector", "worker-agent", "worker-chat"} {
			if !strings.Contains(answer, `job="executor-`+service+`"`) {
				return fmt.Errorf("no %s in %s", service, answer)
			}
		}
		return nil
	})
}

// nodpt checks what the file for an existing NodPT makes of the project.
func (s *smoke) nodpt(t *testing.T) {
	t.Helper()
	env := filepath.Join(t.TempDir(), "backend.env")
	require.NoError(t, os.WriteFile(env, []byte("REDIS_CONNECTION=nodpt:6379,password=p\nMAX_AGENT=7\nMODEL_AGENT=m\n"), 0o600))
	joined := *s.engine
	joined.environ = append(slices.Clip(joined.environ), "NODPT_ENV_FILE="+env, "NODPT_NETWORK=theirs")
	var config struct {
		Services map[string]struct {
			Environment map[string]string
			Networks    map[string]any
		}
		Networks map[string]struct {
			Name     string
			External bool
		}
	}
	output := joined.compose(t, "--env-file", env, "--file", filepath.Join(root, "deploy", "compose.nodpt.yml"), "config", "--format", "json")
	require.NoError(t, json.Unmarshal([]byte(output), &config))
	require.ElementsMatch(t, slices.Collect(maps.Keys(config.Services)), []string{
		"bridge", "postgres", "setup", "temporal", "worker-agent", "worker-chat", "worker-inspector", "worker-manager", "worker-workflows",
	})
	require.True(t, config.Networks["nodpt"].External)
	require.Equal(t, "theirs", config.Networks["nodpt"].Name)
	for name, service := range config.Services {
		if name != "bridge" && !strings.HasPrefix(name, "worker-") {
			continue
		}
		require.Contains(t, service.Networks, "nodpt", name)
		for variable, value := range map[string]string{
			"REDIS_CONNECTION": "nodpt:6379,password=p", "MAX_AGENT": "7", "MODEL_AGENT": "m",
			"LLM_ENDPOINT": "http://ollama:11434/v1/chat/completions",
		} {
			require.Equal(t, value, service.Environment[variable], name)
		}
	}
}

// series are jobs for agents that complete.
func (*smoke) series(prefix string, n int, task string) []sent {
	jobs := make([]sent, n)
	for i := range jobs {
		jobs[i] = sent{role: job.Agent, id: prefix + "-" + strconv.Itoa(i), task: task, status: "completed"}
	}
	return jobs
}

func (s *smoke) submit(t *testing.T, jobs ...sent) {
	t.Helper()
	var commands []string
	for _, j := range jobs {
		task := "task"
		if j.role == job.Chat {
			task = "message"
		}
		command := []string{"XADD", j.role.Stream(), "*", "jobId", j.id, "userId", "u1", "connectionId", "c1", task, strconv.Quote(j.task)}
		for _, field := range j.fields {
			command = append(command, strconv.Quote(field))
		}
		commands = append(commands, strings.Join(command, " "))
	}
	added := s.redis(t, commands...)
	require.Len(t, strings.Fields(added), len(jobs), added)
	s.jobs = append(s.jobs, jobs...)
}

// redis is the answer of Redis to commands of a person.
func (s *smoke) redis(t *testing.T, commands ...string) string {
	t.Helper()
	answer, err := s.redisCommands(t.Context(), commands...)
	require.NoError(t, err)
	return answer
}

func (s *smoke) redisCommands(ctx context.Context, commands ...string) (string, error) {
	return s.input(ctx, strings.NewReader(strings.Join(commands, "\n")+"\n"),
		s.composeArgs("exec", "-T", "redis", "redis-cli", "-e", "--user", "operator")...)
}

func (s *smoke) value(t *testing.T, query string) string {
	t.Helper()
	return s.compose(t, "exec", "-T", "postgres", "psql", "--username=executor", "--no-align", "--tuples-only", "--command="+query)
}

// rows are the states of all jobs in the database.
func (s *smoke) rows(t *testing.T) map[string][]string {
	t.Helper()
	rows := map[string][]string{}
	for row := range strings.FieldsSeq(s.value(t, "select role || '/' || job_id || '|' || status from executor_jobs")) {
		key, status, _ := strings.Cut(row, "|")
		rows[key] = append(rows[key], status)
	}
	return rows
}

// updates are the types of all terminal updates.
func (s *smoke) updates(t *testing.T) map[string][]string {
	t.Helper()
	// Of an entry, its id and its fields; one a line.
	lines := strings.Split(s.redis(t, "XRANGE signalr:updates - +"), "\n")
	updates := map[string][]string{}
	fields := map[string]string{}
	for i, line := range lines {
		if i+1 < len(lines) && slices.Contains([]string{"JobId", "Role", "Type"}, line) {
			fields[line] = lines[i+1]
		}
		if len(fields) == 3 {
			key := fields["Role"] + "/" + fields["JobId"]
			updates[key] = append(updates[key], fields["Type"])
			clear(fields)
		}
	}
	return updates
}

// ended waits until every job sent so far has its row and its update.
func (s *smoke) ended(t *testing.T) {
	t.Helper()
	await(t, 90*time.Second, "all jobs end", func() error {
		rows, updates := s.rows(t), s.updates(t)
		for _, j := range s.jobs {
			if len(rows[j.key()]) == 0 || len(updates[j.key()]) == 0 {
				return fmt.Errorf("%s has the rows %v and the updates %v", j.key(), rows[j.key()], updates[j.key()])
			}
		}
		return nil
	})
}

// holder is the container in which a job's call runs.
func (s *smoke) holder(t *testing.T, j sent) string {
	t.Helper()
	var container string
	await(t, 30*time.Second, "the call of "+j.id+" runs", func() error {
		var run struct {
			PendingActivities []struct {
				State              string `json:"state"`
				LastWorkerIdentity string `json:"lastWorkerIdentity"`
			} `json:"pendingActivities"`
		}
		if err := s.tryGet(t.Context(), s.workflow(j), &run); err != nil {
			return err
		}
		if len(run.PendingActivities) != 1 || run.PendingActivities[0].LastWorkerIdentity == "" {
			return errors.New("no call is running")
		}
		container = host(run.PendingActivities[0].LastWorkerIdentity)
		return nil
	})
	return container
}

// call is an attempt that ended.
type call struct {
	container string
	ended     time.Time
}

// calls are those of a job's history.
func (s *smoke) calls(t *testing.T, j sent) []call {
	t.Helper()
	var found struct {
		History struct {
			Events []struct {
				EventTime time.Time `json:"eventTime"`
				Started   *struct {
					Identity string `json:"identity"`
				} `json:"activityTaskStartedEventAttributes"`
				Completed *struct{} `json:"activityTaskCompletedEventAttributes"`
			} `json:"events"`
		} `json:"history"`
	}
	s.get(t, s.workflow(j)+"/history", &found)
	var calls []call
	var container string
	for _, event := range found.History.Events {
		switch {
		case event.Started != nil:
			container = host(event.Started.Identity)
		case event.Completed != nil:
			calls = append(calls, call{container, event.EventTime})
		}
	}
	return calls
}

// host is the middle of a worker's identity: process@host@queue.
func host(identity string) string {
	parts := strings.Split(identity, "@")
	return parts[min(1, len(parts)-1)]
}

func (*smoke) workflow(j sent) string {
	return "/workflows/" + url.PathEscape(job.WorkflowID(j.role, j.id))
}

// get asks the API behind the Web UI, on the one port that is published.
func (s *smoke) get(t *testing.T, path string, answer any) {
	t.Helper()
	require.NoError(t, s.tryGet(t.Context(), path, answer))
}

func (s *smoke) tryGet(ctx context.Context, path string, answer any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.ui+"/api/v1/namespaces/default"+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, response.Status, last(string(body), 300))
	}
	return json.Unmarshal(body, answer)
}
