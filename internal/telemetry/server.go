package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// HTTPConfig says where the endpoints for operators listen.
type HTTPConfig struct {
	// Addr is host:port (HTTP_ADDR, default 127.0.0.1:9090). Port 0 takes any free
	// one.
	Addr string
	// Explicit is true if Addr was set by somebody. Then an address that cannot be
	// listened on is an error; the default one may be busy, for example with a
	// second executor on the same machine, and costs only a warning.
	Explicit bool
}

// Server serves /metrics, /healthz and /readyz, and nothing else: no pprof, no
// list of what there is.
type Server struct {
	cfg    HTTPConfig
	log    *slog.Logger
	http   *http.Server
	wg     sync.WaitGroup
	mu     sync.Mutex
	listen net.Addr
}

// NewServer returns a server that does not listen yet.
func NewServer(cfg HTTPConfig, m *Metrics, h *Health, log *slog.Logger) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	mux.HandleFunc("GET /healthz", h.serveHealthy)
	mux.HandleFunc("GET /readyz", h.serveReady)
	return &Server{
		cfg: cfg,
		log: log,
		http: &http.Server{
			Handler:           mux,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
}

// Start listens and serves in the background until Stop. The context bounds the
// listening only.
func (s *Server) Start(ctx context.Context) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		if s.cfg.Explicit {
			return fmt.Errorf("cannot serve metrics and health, set HTTP_ADDR to a free address: %w", err)
		}
		s.log.WarnContext(ctx, "Telemetry: no metrics and health endpoints, the default address is taken",
			slog.String("addr", s.cfg.Addr), slog.String("setting", "HTTP_ADDR"), slog.Any("error", err))
		return nil
	}
	s.mu.Lock()
	s.listen = listener.Addr()
	s.mu.Unlock()
	s.log.InfoContext(ctx, "Telemetry: serving metrics and health", slog.String("addr", listener.Addr().String()))
	s.wg.Go(func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.ErrorContext(ctx, "Telemetry: the metrics and health endpoints ended", slog.Any("error", err))
		}
	})
	return nil
}

// Addr is where the server listens, empty while it does not.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listen == nil {
		return ""
	}
	return s.listen.String()
}

// Stop waits for requests under way until the context ends, then cuts them.
func (s *Server) Stop(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("stop the metrics and health endpoints: %w", err), s.http.Close())
	}
	s.wg.Wait()
	return err
}
