package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/llm/llmtest"
)

func newMockLLM() *cobra.Command {
	var (
		addr    string
		latency time.Duration
		options llmtest.Options
	)
	cmd := &cobra.Command{
		Use:   "mock-llm",
		Short: "Serve a scriptable stand-in for an OpenAI-compatible LLM",
		Long: `Serve a scriptable stand-in for an OpenAI-compatible LLM, for tests and demos.

A prompt that begins with "!" triggers a behaviour, for example
  !fail 503        every call fails with that status
  !fail 503 x2     the first two calls fail, the next succeeds
  !429 7           429 with Retry-After: 7
  !slow 3s, !hang, !cut, !malformed html, !finish length, !echo text
GET /_/stats counts calls, also by prompt, and the highest concurrency;
POST /_/script changes the behaviour of all calls.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.LatencyMS = int(latency.Milliseconds())
			return serveMock(cmd.Context(), addr, options, func(at net.Addr) {
				fmt.Fprintf(cmd.ErrOrStderr(), "mock LLM at http://%s/v1/chat/completions\n", at)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&addr, "addr", "127.0.0.1:8355", "address to listen on")
	flags.DurationVar(&latency, "latency", 0, "time every answer takes")
	flags.IntVar(&options.JitterMS, "jitter", 0, "milliseconds added at random")
	flags.Float64Var(&options.ErrorRate, "error-rate", 0, "share of calls that fail, 0 to 1")
	flags.StringSliceVar(&options.Models, "models", nil, "models that exist; others get 404 (default: all)")
	return cmd
}

func serveMock(ctx context.Context, addr string, options llmtest.Options, listening func(net.Addr)) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("cannot listen, set --addr to a free address: %w", err)}
	}
	listening(listener.Addr())
	stub := llmtest.NewServer(options)
	server := &http.Server{Handler: stub, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	stopped := context.AfterFunc(ctx, func() {
		stub.Close()       // ends calls that hang on purpose
		_ = server.Close() // nobody is owed an answer by a stand-in
	})
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return &exitError{exitFailed, err}
	}
	return nil
}
