package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

const processReady = "process.ready"

func processChecks() []string { return []string{processReady} }

const (
	readyTimeout = 5 * time.Second
	maxReport    = 16 << 10
)

// process asks an executor on this machine whether it is ready, if there is one.
func (d *doctor) process(ctx context.Context, s *sheet) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	at := "http://" + d.cfg.HTTPAddr + "/readyz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		s.skip(processReady, "HTTP_ADDR cannot be asked")
		return
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		s.skip(processReady, "no executor answers at HTTP_ADDR (%s) of this machine", d.cfg.HTTPAddr)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	var report struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReport))
	if err != nil || json.Unmarshal(body, &report) != nil || report.Status == "" {
		s.add(Result{
			Check: processReady, State: Warning, Found: "something else than an executor answers at " + d.cfg.HTTPAddr,
			Cause: fmt.Sprintf("status %d, and no report of an executor", resp.StatusCode),
			Fix:   []string{"set HTTP_ADDR to an address of the executor's own"},
		})
		return
	}
	if resp.StatusCode == http.StatusOK {
		s.ok(processReady, "the executor at %s is ready", d.cfg.HTTPAddr)
		return
	}
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(report.Checks)) {
		if report.Checks[name] != "ok" {
			wrong = append(wrong, name+": "+report.Checks[name])
		}
	}
	s.add(Result{
		Check: processReady, State: Problem, Found: "the executor at " + d.cfg.HTTPAddr + " is " + report.Status, Unreachable: true,
		Cause: strings.Join(wrong, "; "), Fix: []string{"see what the other checks say, and the executor's log"},
	})
}
