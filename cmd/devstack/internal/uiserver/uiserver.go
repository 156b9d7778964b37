// Package uiserver runs Temporal's Web UI inside this process. It exists to
// keep a habit of that library away from the stack: its Start ends the whole
// process where the port is busy, and returns only when the server ends.
package uiserver

import (
	"context"
	"fmt"

	"github.com/temporalio/ui-server/v2/server"
	"github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/server_options"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// Server is a running Web UI.
type Server struct {
	server *server.Server
	url    string
	done   chan struct{}
}

// Start serves the Web UI on 127.0.0.1:port, showing the Temporal server at
// the given host:port. It returns when the UI answers.
func Start(ctx context.Context, port int, temporalAddress, namespace string) (*Server, error) {
	if !proc.IsFree(ctx, port) {
		return nil, fmt.Errorf("web ui: port %d is busy", port)
	}
	s := &Server{
		server: server.NewServer(server_options.WithConfigProvider(&config.Config{
			TemporalGRPCAddress: temporalAddress,
			Host:                "127.0.0.1",
			Port:                port,
			EnableUI:            true,
			DefaultNamespace:    namespace,
			DisableNewsFetch:    true,
			HideLogs:            true,
			// The UI is served over plain HTTP here: without this its forms (retry,
			// cancel, reset) would be refused by its own protection.
			CORS: config.CORS{CookieInsecure: true},
		})),
		url:  "http://" + proc.Loopback(port),
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.server.Start() // nil, or the process is gone
	}()
	if err := proc.Wait(ctx, proc.HTTPReady(s.url+"/healthz")); err != nil {
		s.Stop()
		return nil, fmt.Errorf("web ui: %w", err)
	}
	return s, nil
}

// URL is where to point a browser, without a trailing slash.
func (s *Server) URL() string { return s.url }

// Stop ends the UI.
func (s *Server) Stop() {
	s.server.Stop()
	<-s.done
}
