package bench

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/procfs"
	"github.com/redis/go-redis/v9"
)

// sample is what the parts have used up to one moment.
type sample struct {
	at    time.Time
	cpu   map[string]float64 // seconds, by part
	redis redisWork
	trips int64 // of the driver to Redis
	heap  map[string]heap
	llm   calls
}

// redisWork is what Redis has done. Reads are requests as they arrive: one for a
// command, or for a script or a pipeline of some kilobytes.
type redisWork struct{ commands, reads float64 }

// heap is what a Go process has allocated.
type heap struct {
	Mallocs    float64 `json:"mallocs"`
	AllocBytes float64 `json:"alloc_bytes"`
}

// take samples all parts, and the heap of one member if it is not nil.
func (w *world) take(ctx context.Context, m *member) (sample, error) {
	s := sample{at: time.Now(), cpu: map[string]float64{}, trips: w.trips.n.Load(), heap: map[string]heap{}}
	for name, pid := range w.pids() {
		stat, err := stat(pid)
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		s.cpu[name] = stat.CPUTime()
	}
	var err error
	if s.redis, err = w.redisWork(ctx); err != nil {
		return s, err
	}
	if s.llm, err = w.llm.stats(ctx); err != nil {
		return s, err
	}
	if m != nil {
		if s.heap[m.name], err = m.heap(ctx); err != nil {
			return s, err
		}
	}
	return s, nil
}

// pids are the processes of the parts. Postgres works in a process for each
// connection, so it is found anew each time.
func (w *world) pids() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.parts)
}

func stat(pid int) (procfs.ProcStat, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStat{}, err
	}
	return p.Stat()
}

// memory is the resident memory of a process now and at its highest, in bytes.
type memory struct {
	Now  uint64 `json:"now"`
	Peak uint64 `json:"peak"`
}

// memories are those of all parts.
func (w *world) memories() (map[string]memory, error) {
	out := map[string]memory{}
	for name, pid := range w.pids() {
		p, err := procfs.NewProc(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		status, err := p.NewStatus()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = memory{Now: status.VmRSS, Peak: status.VmHWM}
	}
	return out, nil
}

func (w *world) redisWork(ctx context.Context) (redisWork, error) {
	text, err := w.redis.Info(ctx, "stats").Result()
	if err != nil {
		return redisWork{}, err
	}
	var out redisWork
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		var into *float64
		switch name {
		case "total_commands_processed":
			into = &out.commands
		case "total_reads_processed":
			into = &out.reads
		default:
			continue
		}
		if *into, err = strconv.ParseFloat(value, 64); err != nil {
			return out, err
		}
	}
	return out, nil
}

// heap asks an executor's metrics, or another contestant's own path.
func (m *member) heap(ctx context.Context) (heap, error) {
	var out heap
	if !strings.HasPrefix(m.name, executorName) {
		return out, request(ctx, http.MethodGet, m.http+"/memory", nil, &out)
	}
	values, err := m.metrics(ctx, "go_memstats_mallocs_total", "go_memstats_alloc_bytes_total")
	return heap{Mallocs: values[0], AllocBytes: values[1]}, err
}

// metrics returns an executor's metrics, each added up over its labels.
func (m *member) metrics(ctx context.Context, names ...string) ([]float64, error) {
	out := make([]float64, len(names))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.http+"/metrics", http.NoBody)
	if err != nil {
		return out, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	var parser expfmt.TextParser
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return out, err
	}
	for i, name := range names {
		for _, metric := range families[name].GetMetric() {
			out[i] += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	return out, nil
}

// trips counts the driver's own requests to Redis.
type trips struct{ n atomic.Int64 }

var _ redis.Hook = (*trips)(nil)

// DialHook does nothing.
func (t *trips) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook counts a command.
func (t *trips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		t.n.Add(1)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook counts a pipeline.
func (t *trips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		t.n.Add(1)
		return next(ctx, cmds)
	}
}
