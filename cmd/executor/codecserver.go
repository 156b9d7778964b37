package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/telemetry"
)

// codecStop is how long requests under way may take after a stop was asked for.
const codecStop = 5 * time.Second

func newCodecServer() *cobra.Command {
	return &cobra.Command{
		Use:   "codec-server",
		Short: "Decrypt payloads for Temporal's Web UI and CLI",
		Long: `Decrypt payloads for Temporal's Web UI and CLI, and encrypt what people enter
there. Needs ENCRYPTION_KEYS and CODEC_TOKEN; listens at CODEC_ADDR.

In the Web UI choose "Configure Codec Server", then the browser's own setting, and
enter as endpoint
  http://127.0.0.1:8234/<CODEC_TOKEN>
The token is part of the address, because without a login of its own the UI can show
it in no other way. Only pages of CODEC_ORIGIN may call, by the name that stands in
the browser's address bar: http://localhost:8233 and http://127.0.0.1:8233 are two.

For the Temporal CLI set
  TEMPORAL_CODEC_ENDPOINT=http://127.0.0.1:8234 TEMPORAL_CODEC_AUTH="Bearer <CODEC_TOKEN>"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			return serveCodec(cmd.Context(), cfg, cmd.ErrOrStderr(), func(net.Addr) {})
		},
	}
}

// serveCodec runs the codec server until the context ends.
func serveCodec(ctx context.Context, cfg config.Config, stderr io.Writer, listening func(net.Addr)) error {
	settings := cfg.CodecServer()
	if err := codecReady(cfg, settings); err != nil {
		return &exitError{exitUsage, err}
	}
	log := telemetry.NewLogger(stderr, cfg.Log())
	for _, warning := range cfg.Warnings() {
		if strings.HasPrefix(warning, "CODEC_") { // the others are about what other commands do
			log.WarnContext(ctx, "configuration", slog.String("warning", warning))
		}
	}
	payloads, err := codec.New(cfg.Encryption(), nil)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	server := codec.NewServer(payloads, settings, reportRefused(log, settings.Origin))
	server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)

	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", settings.Addr)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("cannot listen, set CODEC_ADDR to a free address: %w", err)}
	}
	log.InfoContext(ctx, "codec server: serving payloads to the Web UI",
		slog.String("addr", listener.Addr().String()), slog.String("allowed", settings.Origin), slog.Int("keys", len(cfg.Encryption())))
	listening(listener.Addr())

	stopped := make(chan error, 1)
	cancel := context.AfterFunc(ctx, func() {
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), codecStop)
		defer done()
		stopped <- server.Shutdown(ctx)
	})
	defer cancel()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return &exitError{exitFailed, err}
	}
	if err := <-stopped; err != nil {
		return &exitError{exitFailed, errors.Join(err, server.Close())}
	}
	return nil
}

// codecReady reports what the codec server needs and other commands do not.
func codecReady(cfg config.Config, settings codec.ServerConfig) error {
	var missing []string
	if len(cfg.Encryption()) == 0 {
		missing = append(missing, "ENCRYPTION_KEYS: must be set, to the keys of the executors: without it nothing is encrypted")
	}
	if settings.Token == "" {
		missing = append(missing, "CODEC_TOKEN: must be set: whoever shows it may read all jobs (openssl rand -hex 32)")
	}
	if len(missing) == 0 {
		return nil
	}
	return errors.New("the configuration is not usable:\n  " + strings.Join(missing, "\n  "))
}

// reportRefused logs refused requests, at most one in a while: they are mostly
// people who opened the UI under another name than CODEC_ORIGIN says.
func reportRefused(log *slog.Logger, allowed string) func(reason, origin string) {
	sometimes := rate.Sometimes{First: 3, Interval: 10 * time.Second}
	return func(reason, origin string) {
		sometimes.Do(func() {
			log.Warn("codec server: request refused", slog.String("reason", reason),
				slog.String("url", origin), slog.String("allowed", allowed))
		})
	}
}
