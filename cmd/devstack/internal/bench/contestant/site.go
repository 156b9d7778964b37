package contestant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"
)

// goodbye is how long answers under way may take when the site closes.
const goodbye = 2 * time.Second

// Memory is what GET /memory tells. The first two only grow, and count the same
// as go_memstats_mallocs_total and go_memstats_alloc_bytes_total of the
// executor's metrics.
type Memory struct {
	Mallocs    uint64 `json:"mallocs"`     // objects allocated since the start
	AllocBytes uint64 `json:"alloc_bytes"` // bytes allocated since the start
	HeapBytes  uint64 `json:"heap_bytes"`  // bytes of objects not yet collected
}

// site is what a contestant serves over HTTP.
type site struct {
	listener net.Listener
	mux      *http.ServeMux
	up       atomic.Bool
}

func listen(ctx context.Context, address string) (*site, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	s := &site{listener: l, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s.mux.HandleFunc("GET /memory", func(w http.ResponseWriter, _ *http.Request) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		writeJSON(w, Memory{Mallocs: m.Mallocs, AllocBytes: m.TotalAlloc, HeapBytes: m.HeapAlloc})
	})
	return s, nil
}

// ready says that jobs are taken from now on.
func (s *site) ready() { s.up.Store(true) }

// serve answers requests until ctx ends, which also ends what they have started.
func (s *site) serve(ctx context.Context) error {
	web := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(s.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("http: %w", err)
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	if web.Shutdown(patience) != nil {
		_ = web.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http: %w", err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client has left
}
