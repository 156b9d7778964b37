package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHealthcheck() *cobra.Command {
	var live bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the executor at HTTP_ADDR whether it is ready",
		Long: `Ask the executor at HTTP_ADDR whether it is ready: connected to Redis, Temporal
and the database, and polling. Made for container health checks, because the image
holds no shell. With --live it asks only whether the process should be restarted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			path := "/readyz"
			if live {
				path = "/healthz"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			return checkHealth(ctx, "http://"+localAddr(cfg.HTTPAddr)+path, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&live, "live", false, "ask /healthz instead of /readyz")
	return cmd
}

// localAddr is where a listener on addr is reached from the same host.
func localAddr(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func checkHealth(ctx context.Context, url string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("no executor answers at %s: is it running, and with the same HTTP_ADDR?", url)}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("%s broke off: %w", url, err)}
	}
	fmt.Fprintln(out, strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return &exitError{code: exitFailed}
	}
	return nil
}
