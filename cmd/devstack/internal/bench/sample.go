package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
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
		var err error
		if s.cpu[name], err = cpu(name, pid); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
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

// pids are the processes of the parts.
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

// cpu is the processor time of a part, in seconds.
func cpu(name string, pid int) (float64, error) {
	s, err := stat(pid)
	if err != nil || name != Database {
		return s.CPUTime(), err
	}
	// PostgreSQL serves each connection in a child. Those that have ended are in the
	// parent's own figures; one that ends meanwhile would be in neither.
	const (
		ticks    = 100 // a second, of those that children are counted in
		attempts = 10
	)
	var sum float64
	for range attempts {
		ended := s.CUTime + s.CSTime
		sum = s.CPUTime() + float64(ended)/ticks
		err := children(pid, func(child procfs.Proc) error {
			s, err := child.Stat()
			sum += s.CPUTime()
			return err
		})
		if err != nil {
			return 0, err
		}
		if s, err = stat(pid); err != nil || s.CUTime+s.CSTime == ended {
			return sum, err
		}
	}
	return sum, nil
}

// children calls a function for each child of a process. A child that ends
// meanwhile is no error.
func children(pid int, each func(procfs.Proc) error) error {
	all, err := procfs.AllProcs()
	if err != nil {
		return err
	}
	gone := func(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) }
	for _, p := range all {
		s, err := p.Stat()
		if err == nil && s.PPID == pid {
			err = each(p)
		}
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// Memory is the resident memory of a part now and at its highest, in bytes.
type Memory struct {
	Now  uint64 `json:"now"`
	Peak uint64 `json:"peak"` // 0: not known, of a part with several processes
}

// memories are those of all parts.
func (w *world) memories() (map[string]Memory, error) {
	out := map[string]Memory{}
	for name, pid := range w.pids() {
		var err error
		if out[name], err = resident(name, pid); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return out, nil
}

func resident(name string, pid int) (Memory, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return Memory{}, err
	}
	status, err := p.NewStatus()
	if err != nil || name != Database {
		return Memory{Now: status.VmRSS, Peak: status.VmHWM}, err
	}
	// Each child has its own memory, and all share the program and the buffers.
	own, file, shared := status.RssAnon, status.RssFile, status.RssShmem
	err = children(pid, func(child procfs.Proc) error {
		status, err := child.NewStatus()
		own, file, shared = own+status.RssAnon, max(file, status.RssFile), max(shared, status.RssShmem)
		return err
	})
	return Memory{Now: own + file + shared}, err
}

func (w *world) redisWork(ctx context.Context) (out redisWork, err error) {
	err = w.redisInfo(ctx, "stats", map[string]*float64{"total_commands_processed": &out.commands, "total_reads_processed": &out.reads})
	return out, err
}

// redisMemory is what Redis has allocated, in bytes.
func (w *world) redisMemory(ctx context.Context) (used float64, err error) {
	err = w.redisInfo(ctx, "memory", map[string]*float64{"used_memory": &used})
	return used, err
}

// redisInfo reads figures of a section of INFO.
func (w *world) redisInfo(ctx context.Context, section string, into map[string]*float64) error {
	text, err := w.redis.Info(ctx, section).Result()
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if figure := into[name]; figure != nil {
			if *figure, err = strconv.ParseFloat(value, 64); err != nil {
				return fmt.Errorf("INFO %s: %s: %w", section, name, err)
			}
		}
	}
	return nil
}

// heap asks an executor's metrics, or another contestant's own path.
func (m *member) heap(ctx context.Context) (heap, error) {
	var out heap
	if !strings.HasPrefix(m.name, Executor) {
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
