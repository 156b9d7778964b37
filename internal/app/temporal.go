package app

import (
	"log/slog"
	"net"
	"slices"
	"time"

	"go.temporal.io/sdk/client"
	"golang.org/x/time/rate"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/reach"
	"github.com/nodpt/executor/internal/telemetry"
)

// TemporalOptions are the options of every Temporal client of this program,
// those of the commands too: address, namespace, credentials and TLS, the
// encryption of payloads and failures, logs that pass the filter, and what the
// bridge and the activities need on the connection. Namespace and DataConverter are also what
// bridge.Connect takes. metrics may be nil. The error is a mistake in the
// settings.
func TemporalOptions(cfg config.Config, log *slog.Logger, metrics client.MetricsHandler) (client.Options, error) {
	options, err := cfg.Temporal()
	if err != nil {
		return client.Options{}, err
	}
	payloads, err := codec.New(cfg.Encryption(), reportUnreadable(log))
	if err != nil {
		return client.Options{}, err
	}
	options.DataConverter = payloads.DataConverter()
	options.FailureConverter = payloads.FailureConverter()
	options.Logger = telemetry.TemporalLogger(log)
	options.MetricsHandler = metrics
	options.ConnectionOptions.GrpcCompression = compression(options.HostPort)
	options.ConnectionOptions.DialOptions = slices.Concat(options.ConnectionOptions.DialOptions, bridge.DialOptions(), activities.DialOptions())
	return options, nil
}

// compression is how requests to the server travel. The SDK compresses them, which
// costs both ends more time than a network of one's own takes for some kilobytes.
func compression(hostPort string) client.GrpcCompression {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil || reach.Of(host) == reach.Public {
		return &client.GrpcCompressionGzip{}
	}
	return &client.GrpcCompressionNone{}
}

// unreadableEvery is how often it is logged that payloads cannot be read.
const unreadableEvery = 30 * time.Second

// reportUnreadable logs that a key is missing. The SDK's own records of what
// follows from it do not say which setting to correct.
func reportUnreadable(log *slog.Logger) func(*codec.Error) {
	var sometimes rate.Sometimes
	sometimes.First, sometimes.Interval = 1, unreadableEvery
	return func(unreadable *codec.Error) {
		sometimes.Do(func() {
			log.Error("jobs wait for a key: a payload in Temporal cannot be decrypted", slog.Any("error", unreadable))
		})
	}
}
