package app_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	failurepb "go.temporal.io/api/failure/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/codec"
)

// encryptionKeys is a value of ENCRYPTION_KEYS; a key follows from its id.
func encryptionKeys(ids ...string) string {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = id + ":" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(id, 32)[:32]))
	}
	return strings.Join(keys, ",")
}

func temporalOptions(t *testing.T, keys string, log *slog.Logger) client.Options {
	t.Helper()
	options, err := app.TemporalOptions(load(t, map[string]string{"ENCRYPTION_KEYS": keys, "TEMPORAL_NAMESPACE": "ns"}), log, nil)
	require.NoError(t, err)
	return options
}

// Every client must write and read payloads alike.
func TestTemporalOptions(t *testing.T) {
	t.Parallel()
	discard := slog.New(slog.DiscardHandler)
	const content = "CANARY"
	write := func(options client.Options) (*commonpb.Payload, *failurepb.Failure) {
		p, err := options.DataConverter.ToPayload(content)
		require.NoError(t, err)
		return p, options.FailureConverter.ErrorToFailure(errors.New(content))
	}
	read := func(options client.Options, p *commonpb.Payload, f *failurepb.Failure) {
		var text string
		require.NoError(t, options.DataConverter.FromPayload(p, &text))
		require.Equal(t, content, text)
		require.ErrorContains(t, options.FailureConverter.FailureToError(proto.Clone(f).(*failurepb.Failure)), content)
	}

	off, a, ba := temporalOptions(t, "", discard), temporalOptions(t, encryptionKeys("a"), discard), temporalOptions(t, encryptionKeys("b", "a"), discard)
	require.Equal(t, "ns", a.Namespace)
	require.Equal(t, "127.0.0.1:1", a.HostPort)
	require.NotEmpty(t, a.ConnectionOptions.DialOptions, "the request ids of the bridge")
	require.NotNil(t, a.Logger)

	p, f := write(off)
	require.Equal(t, converter.MetadataEncodingJSON, string(p.GetMetadata()[converter.MetadataEncoding]))
	for _, options := range []client.Options{off, a, ba} {
		read(options, p, f)
	}
	p, f = write(a)
	for _, m := range []proto.Message{p, f} {
		raw, err := proto.Marshal(m)
		require.NoError(t, err)
		require.NotContains(t, string(raw), content)
	}
	read(a, p, f)
	read(ba, p, f)

	p, f = write(ba)
	read(ba, p, f)
	var text string
	var unreadable *codec.Error
	require.ErrorAs(t, a.DataConverter.FromPayload(p, &text), &unreadable)
	require.Equal(t, "b", unreadable.KeyID)
	require.ErrorAs(t, off.DataConverter.FromPayload(p, &text), &unreadable)
}

// What crosses the internet is compressed; what does not is spared the work.
func TestCompression(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]client.GrpcCompression{
		"127.0.0.1:7233":           &client.GrpcCompressionNone{},
		"temporal:7233":            &client.GrpcCompressionNone{},
		"10.1.2.3:7233":            &client.GrpcCompressionNone{},
		"ns.acc.tmprl.cloud:7233":  &client.GrpcCompressionGzip{},
		"temporal.example.com:443": &client.GrpcCompressionGzip{},
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			cfg := load(t, map[string]string{"TEMPORAL_ADDRESS": address, "TEMPORAL_TLS": "true"})
			options, err := app.TemporalOptions(cfg, slog.New(slog.DiscardHandler), nil)
			require.NoError(t, err)
			require.IsType(t, want, options.ConnectionOptions.GrpcCompression)
		})
	}
}

// The SDK does not log which setting is wrong, and may meet the same payload a
// hundred times a second.
func TestMissingKeyIsLoggedOnceInAWhile(t *testing.T) {
	t.Parallel()
	p, err := temporalOptions(t, encryptionKeys("a"), slog.New(slog.DiscardHandler)).DataConverter.ToPayload("CANARY")
	require.NoError(t, err)
	var out bytes.Buffer
	options := temporalOptions(t, encryptionKeys("b"), slog.New(slog.NewTextHandler(&out, nil)))
	for range 10 {
		var text string
		require.Error(t, options.DataConverter.FromPayload(p, &text))
	}
	require.Equal(t, 1, strings.Count(out.String(), "ENCRYPTION_KEYS"), out.String())
	require.NotContains(t, out.String(), "CANARY")
}
