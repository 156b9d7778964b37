package telemetry

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"sync"
	"time"
)

// checkTimeout is how long one check of /readyz may take.
const checkTimeout = 2 * time.Second

// Health answers two different questions. /healthz: would a restart help? Only
// after Fail. /readyz: can the process do its work right now? Only while every
// registered check passes; a dependency that is down makes a process not ready,
// and never unhealthy, because restarting it would not bring Redis back.
type Health struct {
	mu       sync.Mutex
	checks   map[string]func(context.Context) error
	fatal    error
	draining bool
}

// NewHealth returns the health of a process without checks: alive and ready.
func NewHealth() *Health {
	return &Health{checks: make(map[string]func(context.Context) error)}
}

// Register adds a check of readiness, or replaces the one of that name. It is
// run at every request to /readyz with a timeout of two seconds, together with
// the others; it must honour its context.
func (h *Health) Register(name string, check func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks[name] = check
}

// Fail marks the process as beyond repair: not healthy and not ready until it is
// restarted. The first error is kept.
func (h *Health) Fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fatal == nil {
		h.fatal = err
	}
}

// Drain makes the process not ready while it stops. It stays healthy.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// Report is the body of /healthz and /readyz.
type Report struct {
	Status string            `json:"status"`           // ok, ready, not ready, failed
	Checks map[string]string `json:"checks,omitempty"` // name → ok, or what is wrong
}

// Ready runs all checks and reports whether every one of them passes.
func (h *Health) Ready(ctx context.Context) (Report, bool) {
	h.mu.Lock()
	fatal, draining := h.fatal, h.draining
	checks := maps.Clone(h.checks)
	h.mu.Unlock()

	if fatal != nil {
		return Report{Status: "failed", Checks: map[string]string{"process": describe(fatal, false)}}, false
	}
	if draining {
		return Report{Status: "not ready", Checks: map[string]string{"process": "stopping"}}, false
	}

	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		report = Report{Status: "ready", Checks: make(map[string]string, len(checks))}
		ready  = true
	)
	for name, check := range checks {
		wg.Go(func() {
			err := check(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				report.Checks[name] = "ok"
				return
			}
			report.Checks[name] = describe(err, false)
			report.Status, ready = "not ready", false
		})
	}
	wg.Wait()
	return report, ready
}

// Healthy reports whether Fail was never called.
func (h *Health) Healthy() (Report, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fatal != nil {
		return Report{Status: "failed", Checks: map[string]string{"process": describe(h.fatal, false)}}, false
	}
	return Report{Status: "ok"}, true
}

func (h *Health) serveHealthy(w http.ResponseWriter, _ *http.Request) {
	report, ok := h.Healthy()
	writeReport(w, report, ok)
}

func (h *Health) serveReady(w http.ResponseWriter, r *http.Request) {
	report, ok := h.Ready(r.Context())
	writeReport(w, report, ok)
}

func writeReport(w http.ResponseWriter, report Report, ok bool) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(report) // the client went away
}
