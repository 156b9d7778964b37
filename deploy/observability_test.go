package deploy

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert/yaml"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc/codes"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/telemetry"
	"github.com/nodpt/executor/worker"
)

const needPromtool = "run scripts/need promtool (it is part of Prometheus)"

// promtool runs Prometheus' own checks.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	_, err := exec.LookPath("promtool")
	require.NoError(t, err, needPromtool)
	output, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput()
	require.NoError(t, err, "promtool %s\n%s", strings.Join(args, " "), output)
}

// TestPrometheusScrapesEveryProcess: the names are the services of the compose
// file, one for each queue and the bridge.
func TestPrometheusScrapesEveryProcess(t *testing.T) {
	t.Parallel()
	want := []string{"bridge"}
	for _, queue := range worker.Queues() {
		want = append(want, "worker-"+queue)
	}
	names := matches(t, read(t, "prometheus/prometheus.yml"), `(?m)^      - names: \[(.*)\]$`)[0]
	require.ElementsMatch(t, want, strings.Split(names, ", "))
}

type alert struct {
	Name        string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "prometheus/alerts.yml")), &file))
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	require.NotEmpty(t, all)
	return all
}

// TestAlertsTellWhatToDo: an alert that names no command leaves the person who
// was woken by it alone.
func TestAlertsTellWhatToDo(t *testing.T) {
	t.Parallel()
	for _, a := range alerts(t) {
		t.Run(a.Name, func(t *testing.T) {
			t.Parallel()
			require.Regexp(t, `^Executor[A-Z]`, a.Name)
			_, err := time.ParseDuration(a.For)
			require.NoError(t, err, "for")
			require.Contains(t, []string{"critical", "warning"}, a.Labels["severity"])
			require.NotEmpty(t, a.Annotations["summary"])
			require.Regexp(t, "`(executor|docker compose|redis-cli) [^`]+`", a.Annotations["description"])
		})
	}
}

// TestAlertsAreTested looks for an evaluation at which each alert fires, and for
// one at which it does not.
func TestAlertsAreTested(t *testing.T) {
	t.Parallel()
	var file struct {
		Tests []map[string]any `yaml:"tests"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "prometheus/alerts_test.yml")), &file))
	seen := map[string]map[bool]bool{} // alert → fires → tested
	note := func(name string, fires bool) {
		if seen[name] == nil {
			seen[name] = map[bool]bool{}
		}
		seen[name][fires] = true
	}
	for _, test := range file.Tests {
		for check := range checks(test["alert_rule_test"]) {
			note(check["alertname"].(string), check["exp_alerts"] != nil)
		}
		for check := range checks(test["promql_expr_test"]) {
			if m := regexp.MustCompile(`ALERTS\{alertname="(\w+)",alertstate="firing"`).FindStringSubmatch(check["expr"].(string)); m != nil {
				note(m[1], check["exp_samples"] != nil)
			}
		}
	}
	for _, a := range alerts(t) {
		require.Equal(t, map[bool]bool{true: true, false: true}, seen[a.Name], a.Name)
		delete(seen, a.Name)
	}
	require.Empty(t, seen, "tests of alerts that do not exist")
}

// checks are the evaluations of one test, if it has any of the kind.
func checks(list any) iter.Seq[map[string]any] {
	return func(yield func(map[string]any) bool) {
		all, _ := list.([]any)
		for _, check := range all {
			if !yield(check.(map[string]any)) {
				return
			}
		}
	}
}

type dashboard struct {
	UID         string `json:"uid"`
	ID          *int   `json:"id"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Templating  struct {
		List []struct {
			Name       string          `json:"name"`
			Type       string          `json:"type"`
			Definition string          `json:"definition"`
			Datasource source          `json:"datasource"`
			Query      json.RawMessage `json:"query"`
		} `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Datasource  source `json:"datasource"`
	Grid        struct {
		X, Y, W, H int
	} `json:"gridPos"`
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []struct {
		Datasource source `json:"datasource"`
		Expr       string `json:"expr"`
		Legend     string `json:"legendFormat"`
		RefID      string `json:"refId"`
	} `json:"targets"`
}

type source struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob("grafana/dashboards/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	all := map[string]dashboard{}
	for _, file := range files {
		var d dashboard
		require.NoError(t, json.Unmarshal([]byte(read(t, file)), &d), file)
		all[filepath.Base(file)] = d
	}
	return all
}

// TestDashboardsCanBeImported: by anyone, next to others, whatever the data
// source is called.
func TestDashboardsCanBeImported(t *testing.T) {
	t.Parallel()
	var uids []string
	for file, d := range dashboards(t) {
		uids = append(uids, d.UID)
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			require.Regexp(t, `^nodpt-[a-z-]{1,34}$`, d.UID)
			require.Nil(t, d.ID, "the id of one Grafana's database")
			require.NotEmpty(t, d.Title)
			require.NotEmpty(t, d.Description)
			variable := source{Type: "prometheus", UID: "${datasource}"}
			var names []string
			for _, v := range d.Templating.List {
				names = append(names, v.Name)
				switch v.Name {
				case "datasource":
					require.Equal(t, "datasource", v.Type)
					require.JSONEq(t, `"prometheus"`, string(v.Query))
				default:
					require.Equal(t, variable, v.Datasource, v.Name)
				}
			}
			require.Equal(t, "datasource", names[0], "the others depend on it")
			ids := map[int]bool{}
			for i, p := range d.Panels {
				require.False(t, ids[p.ID], "%s: another panel has id %d", p.Title, p.ID)
				ids[p.ID] = true
				require.NotEmpty(t, p.Title)
				for _, before := range d.Panels[:i] {
					require.False(t, overlap(p, before), "%s lies on %s", p.Title, before.Title)
				}
				require.LessOrEqual(t, p.Grid.X+p.Grid.W, 24, p.Title)
				if p.Type == "row" {
					continue
				}
				require.NotEmpty(t, p.Description, p.Title)
				require.NotEmpty(t, p.FieldConfig.Defaults.Unit, p.Title)
				require.Equal(t, variable, p.Datasource, p.Title)
				require.NotEmpty(t, p.Targets, p.Title)
				refs := map[string]bool{}
				for _, target := range p.Targets {
					require.Equal(t, variable, target.Datasource, p.Title)
					require.False(t, refs[target.RefID], "%s: two targets %s", p.Title, target.RefID)
					refs[target.RefID] = true
					for _, v := range regexp.MustCompile(`\$([a-z_]\w*)`).FindAllStringSubmatch(target.Expr, -1) {
						require.Contains(t, append(names, "__rate_interval"), v[1], p.Title)
					}
					known := append(parseQuery(target.Expr).groups, "job", "instance")
					for _, label := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.Legend, -1) {
						require.Contains(t, known, label[1], "legend of %s", p.Title)
					}
				}
			}
		})
	}
	slices.Sort(uids)
	require.Len(t, slices.Compact(slices.Clone(uids)), len(uids))
}

func overlap(a, b panel) bool {
	return a.Grid.X < b.Grid.X+b.Grid.W && b.Grid.X < a.Grid.X+a.Grid.W &&
		a.Grid.Y < b.Grid.Y+b.Grid.H && b.Grid.Y < a.Grid.Y+a.Grid.H
}

// dashboardQueries are all expressions of the dashboards as Prometheus gets them,
// by panel; those of variables too.
func dashboardQueries(t *testing.T) map[string][]string {
	t.Helper()
	queries := map[string][]string{}
	for file, d := range dashboards(t) {
		for _, v := range d.Templating.List {
			if m := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`).FindStringSubmatch(v.Definition); m != nil {
				queries[file+" $"+v.Name] = []string{"count by (" + m[2] + ") (" + m[1] + ")"}
			} else {
				require.Equal(t, "datasource", v.Type, v.Name)
			}
		}
		replace := strings.NewReplacer("$__rate_interval", "1m", "$job", "executor.*", "$role", ".*", "$queue", ".*")
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				expr := replace.Replace(target.Expr)
				require.NotContains(t, expr, "$job", p.Title)
				key := file + " " + p.Title
				queries[key] = append(queries[key], expr)
			}
		}
	}
	return queries
}

func TestDashboardQueriesAreValid(t *testing.T) {
	t.Parallel()
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for _, expressions := range dashboardQueries(t) {
		for _, expr := range expressions {
			rules = append(rules, rule{"checked:query", expr})
		}
	}
	// JSON is YAML.
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboards", "rules": rules}}})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "dashboards.json")
	require.NoError(t, os.WriteFile(path, file, 0o644))
	promtool(t, "check", "rules", "--lint=none", path)
}

// used is everything that alerts and dashboards ask for.
func used(t *testing.T) series {
	t.Helper()
	s := series{}
	for _, a := range alerts(t) {
		s.add(parseQuery(a.Expr))
	}
	for _, expressions := range dashboardQueries(t) {
		for _, expr := range expressions {
			s.add(parseQuery(expr))
		}
	}
	for _, prometheus := range []string{"up", "ALERTS"} {
		require.Contains(t, s, prometheus)
		delete(s, prometheus)
	}
	return s
}

// TestMetricsListed: the end-to-end tests look for every line of that file in
// what a running executor serves (TestObservedMetricsExist).
func TestMetricsListed(t *testing.T) {
	t.Parallel()
	const list = "testdata/metrics.txt"
	if os.Getenv("UPDATE_DOCS") != "" {
		require.NoError(t, os.WriteFile(list, []byte(used(t).String()), 0o644))
	}
	require.Equal(t, used(t).String(), read(t, list),
		"run UPDATE_DOCS=1 go test ./deploy, then the end-to-end test TestObservedMetricsExist")
}

// TestMetricsOfTheProgramExist compares with the registry itself, which is there
// without a Temporal server.
func TestMetricsOfTheProgramExist(t *testing.T) {
	t.Parallel()
	served := registered(t)
	literals := sources(t, "../bridge", "../activities", "../workflows", "../internal/job", "../internal/llm", "../internal/telemetry")
	for name, labels := range used(t) {
		if !strings.HasPrefix(name, "temporal_") {
			require.NotNil(t, served[name], "no metric %s", name)
			for label := range labels {
				require.True(t, ofTarget(label) || served[name][label], "%s has no label %s", name, label)
			}
		}
		for label, values := range labels {
			for _, value := range values {
				switch label {
				case "job", "instance", "worker_type", "task_queue": // seen by the end-to-end test
				case "operation":
					var known []string
					for _, method := range workflowservice.WorkflowService_ServiceDesc.Methods {
						known = append(known, method.MethodName)
					}
					require.Contains(t, known, value, name)
				case "status_code":
					require.NoError(t, new(codes.Code).UnmarshalJSON([]byte(`"`+value+`"`)), value)
				default:
					require.Contains(t, literals, `"`+value+`"`, "%s of %s", label, name)
				}
			}
		}
	}
}

// registered are the metrics of a process in which everything has happened once,
// with their labels.
func registered(t *testing.T) map[string]map[string]bool {
	t.Helper()
	m, err := telemetry.NewMetrics("model")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Shutdown(context.WithoutCancel(t.Context()))) })
	m.JobStarted(job.Agent)
	m.JobFinished(job.Agent, job.Failed, "code", time.Second)
	m.EntryRejected(job.Agent, "reason")
	m.EntryDuplicate(job.Agent, "kind")
	m.EntryNormalised(job.Agent, "note")
	m.EntriesLost(job.Agent, 1)
	m.EntriesUnaccounted(job.Agent, "kind", 1)
	m.BridgeError(job.Agent, "kind")
	m.ActivityError(job.Agent, "kind")
	m.Running(job.Agent, 1)
	m.TotalWaiting(job.Agent, 1)
	m.LLMCall(job.Agent, "model", time.Second, 1, 1, "")
	m.LLMCall(job.Agent, "model", time.Second, 0, 0, "kind")
	m.LLMFinished(job.Agent, "stop")
	m.ObserveStreams(func(context.Context) (map[job.Role]telemetry.StreamStats, error) {
		return map[job.Role]telemetry.StreamStats{job.Agent: {Length: 1}}, nil
	})
	recorder := httptest.NewRecorder()
	m.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	require.Equal(t, http.StatusOK, recorder.Code)
	found := map[string]map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^([a-z]\w*)(?:\{(.*)\})? `).FindAllStringSubmatch(recorder.Body.String(), -1) {
		if found[line[1]] == nil {
			found[line[1]] = map[string]bool{}
		}
		for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(line[2], -1) {
			found[line[1]][label[1]] = true
		}
	}
	return found
}

// sources is the code of packages, without tests.
func sources(t *testing.T, dirs ...string) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		require.NotEmpty(t, files, dir)
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				all.WriteString(read(t, file))
			}
		}
	}
	return all.String()
}

// TestPrometheusAcceptsItsFiles, and alerts fire when they should, by the
// commands that the page tells to type at the top of this repository.
func TestPrometheusAcceptsItsFiles(t *testing.T) {
	t.Parallel()
	_, err := exec.LookPath("promtool")
	require.NoError(t, err, needPromtool)
	commands := matches(t, read(t, "../docs/observability.md"), `(?m)^    (promtool .*)$`)
	require.Len(t, commands, 2)
	commands = append(commands, "promtool check rules deploy/prometheus/alerts.yml")
	for _, command := range commands {
		sh := exec.CommandContext(t.Context(), "sh", "-euc", command)
		sh.Dir = ".."
		output, err := sh.CombinedOutput()
		require.NoError(t, err, "%s\n%s", command, output)
	}
}

// TestObservabilityPageListsEveryAlert, and no other.
func TestObservabilityPageListsEveryAlert(t *testing.T) {
	t.Parallel()
	want := map[string]string{}
	for _, a := range alerts(t) {
		want[a.Name] = a.Labels["severity"]
	}
	listed := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(Executor\\w+)` \\| (\\w+) \\|").FindAllStringSubmatch(read(t, "../docs/observability.md"), -1) {
		listed[row[1]] = row[2]
	}
	require.Equal(t, want, listed)
}
