package codec_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	failurepb "go.temporal.io/api/failure/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/nodpt/executor/internal/codec"
)

const canary = "CANARY-of-a-job"

// entry is a key as ENCRYPTION_KEYS holds it; seed makes it another one.
func entry(id string, seed byte) string {
	secret := strings.Repeat(string([]byte{'k', seed}), 16)
	return id + ":" + base64.StdEncoding.EncodeToString([]byte(secret))
}

func newCodec(t require.TestingT, entries ...string) *codec.Codec {
	var keys []codec.Key
	if len(entries) > 0 {
		var err error
		keys, err = codec.ParseKeys(strings.Join(entries, ","))
		require.NoError(t, err)
	}
	c, err := codec.New(keys, nil)
	require.NoError(t, err)
	return c
}

func payload(text string) *commonpb.Payload {
	return &commonpb.Payload{
		Metadata: map[string][]byte{converter.MetadataEncoding: []byte("json/plain"), "other": {0, 1, 2}},
		Data:     []byte(text),
	}
}

func encode(t require.TestingT, c *codec.Codec, p *commonpb.Payload) *commonpb.Payload {
	encoded, err := c.Encode([]*commonpb.Payload{p})
	require.NoError(t, err)
	require.Len(t, encoded, 1)
	return encoded[0]
}

func decode(c *codec.Codec, p *commonpb.Payload) (*commonpb.Payload, error) {
	decoded, err := c.Decode([]*commonpb.Payload{p})
	if err != nil {
		return nil, err
	}
	return decoded[0], nil
}

func requireEqual(t require.TestingT, want, got *commonpb.Payload) {
	require.True(t, proto.Equal(want, got), "want %v, got %v", want, got)
}

// Whatever a payload is, it comes back as it was, from the active key or from
// any later position, and nothing of it is in what was stored.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	older, both := newCodec(t, entry("a", 1)), newCodec(t, entry("b", 2), entry("a", 1))
	rapid.Check(t, func(t *rapid.T) {
		p := &commonpb.Payload{
			Metadata: rapid.MapOf(rapid.String(), rapid.SliceOf(rapid.Byte())).Draw(t, "metadata"),
			Data:     append([]byte(canary), rapid.SliceOf(rapid.Byte()).Draw(t, "data")...),
		}
		for name := range p.GetMetadata() {
			if !validUTF8(name) { // protobuf refuses it, and so does Encode
				delete(p.Metadata, name)
			}
		}
		before := proto.Clone(p).(*commonpb.Payload)
		for _, c := range []*codec.Codec{older, both} {
			sealed := encode(t, c, p)
			requireEqual(t, before, p)
			require.NotContains(t, string(sealed.GetData()), canary)
			require.Len(t, sealed.GetMetadata(), 2, "nothing of the original metadata stands outside")
			require.Less(t, proto.Size(sealed), proto.Size(p)+codec.Overhead)
			opened, err := decode(both, sealed)
			require.NoError(t, err)
			requireEqual(t, p, opened)
		}
	})
}

func validUTF8(s string) bool { return strings.ToValidUTF8(s, "") == s }

// The size of jobs and answers is limited where they are decoded, as JSON. That
// holds for what Temporal gets as long as encryption adds next to nothing.
func TestOverheadDoesNotGrow(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry(strings.Repeat("x", 64), 1))
	for _, size := range []int{0, 1, 1 << 10, 1 << 20, 2 << 20} {
		p := payload(strings.Repeat("<", size))
		require.Less(t, proto.Size(encode(t, c, p)), proto.Size(p)+codec.Overhead)
	}
}

func TestEveryEncryptionDiffers(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("a", 1))
	seen := make(map[string]bool)
	for range 1000 {
		nonce := string(encode(t, c, payload("x")).GetData()[:12])
		require.False(t, seen[nonce])
		seen[nonce] = true
	}
}

// Encryption can be switched on while runs are open, and off again.
func TestClearPayloadsPass(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]*codec.Codec{"with a key": newCodec(t, entry("a", 1)), "without": newCodec(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := payload("in clear text")
			opened, err := decode(c, plain)
			require.NoError(t, err)
			requireEqual(t, plain, opened)
			_, err = c.Decode([]*commonpb.Payload{nil, {}, plain})
			require.NoError(t, err)
		})
	}
	off := newCodec(t)
	require.False(t, off.Encrypts())
	requireEqual(t, payload("x"), encode(t, off, payload("x")))
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("a", 1), entry("b", 2))
	change := func(f func(p *commonpb.Payload)) *commonpb.Payload {
		p := encode(t, c, payload(canary))
		f(p)
		return p
	}
	for name, tt := range map[string]struct {
		p       *commonpb.Payload
		c       *codec.Codec
		missing bool
		id      string
	}{
		"no keys at all":         {encode(t, c, payload(canary)), newCodec(t), true, "a"},
		"key taken away":         {encode(t, c, payload(canary)), newCodec(t, entry("b", 2)), true, "a"},
		"another key of that id": {encode(t, c, payload(canary)), newCodec(t, entry("a", 3)), false, "a"},
		"key id swapped":         {change(func(p *commonpb.Payload) { p.Metadata[codec.MetadataKeyID] = []byte("b") }), c, false, "b"},
		"no key id":              {change(func(p *commonpb.Payload) { delete(p.GetMetadata(), codec.MetadataKeyID) }), c, true, "?"},
		"key id is no id":        {change(func(p *commonpb.Payload) { p.Metadata[codec.MetadataKeyID] = []byte(canary + "\n\x1b[31m") }), c, true, "?"},
		"no data":                {change(func(p *commonpb.Payload) { p.Data = nil }), c, false, "a"},
		"shorter than a nonce":   {change(func(p *commonpb.Payload) { p.Data = p.GetData()[:11] }), c, false, "a"},
		"truncated":              {change(func(p *commonpb.Payload) { p.Data = p.GetData()[:len(p.GetData())-1] }), c, false, "a"},
		"lengthened":             {change(func(p *commonpb.Payload) { p.Data = append(p.GetData(), 0) }), c, false, "a"},
		"a bit of the text":      {change(func(p *commonpb.Payload) { p.GetData()[20] ^= 1 }), c, false, "a"},
		"a bit of the nonce":     {change(func(p *commonpb.Payload) { p.GetData()[0] ^= 1 }), c, false, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := decode(tt.c, tt.p)
			var unreadable *codec.Error
			require.ErrorAs(t, err, &unreadable)
			require.Equal(t, &codec.Error{KeyID: tt.id, Missing: tt.missing}, unreadable)
			require.ErrorContains(t, err, "ENCRYPTION_KEYS")
			require.Regexp(t, `\bkey `+regexp.QuoteMeta(tt.id)+`[ ,]`, err.Error())
			require.NotContains(t, err.Error(), "CANARY")
		})
	}
}

func TestNotice(t *testing.T) {
	t.Parallel()
	var noticed []*codec.Error
	c, err := codec.New(nil, func(e *codec.Error) { noticed = append(noticed, e) })
	require.NoError(t, err)
	sealed := encode(t, newCodec(t, entry("a", 1)), payload("x"))
	_, err = c.Decode([]*commonpb.Payload{payload("y"), sealed, sealed})
	require.Error(t, err)
	require.Equal(t, []*codec.Error{{KeyID: "a", Missing: true}}, noticed)
}

func TestParseKeys(t *testing.T) {
	t.Parallel()
	a, b := entry("a", 1), entry("2026.B_-", 2)
	for name, text := range map[string]string{
		"commas":      a + "," + b,
		"lines":       a + "\n" + b + "\n",
		"both":        "\r\n " + a + " ,\r\n\t" + b + ",,\n",
		"around them": "a : " + strings.TrimPrefix(a, "a:") + "," + b,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keys, err := codec.ParseKeys(text)
			require.NoError(t, err)
			require.Len(t, keys, 2)
			require.Equal(t, "a", keys[0].ID)
			require.Equal(t, "2026.B_-", keys[1].ID)
		})
	}

	short := "s:" + base64.StdEncoding.EncodeToString([]byte(canary))
	for name, tt := range map[string]struct {
		text string
		want []string
	}{
		"nothing":       {" ,\n", []string{"no key"}},
		"no colon":      {canary, []string{"key 1 must be an id, a colon"}},
		"no id":         {a + "," + a[1:], []string{"key 2 must have an id"}},
		"id too long":   {entry(strings.Repeat("x", 65), 1), []string{"key 1 must have an id"}},
		"id of symbols": {entry(canary+"/", 1), []string{"key 1 must have an id"}},
		"id twice":      {a + "," + b + "," + entry("a", 3), []string{"key 3 has the id of key 1"}},
		"short key":     {a + "\n" + short, []string{"key 2 must have the base64 of exactly 32 bytes"}},
		"no base64":     {"a:" + canary + "!", []string{"key 1 must have the base64"}},
		"loose bits":    {a[:len(a)-2] + "9=", []string{"key 1 must have the base64"}},
		"several":       {short + "," + b + "," + canary, []string{"key 1 must have", "key 3 must be"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := codec.ParseKeys(tt.text)
			require.Error(t, err)
			for _, want := range tt.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "CANARY")
			require.NotContains(t, err.Error(), strings.TrimPrefix(a, "a:"))
		})
	}
}

func TestKeysPrintAsTheirIDs(t *testing.T) {
	t.Parallel()
	keys, err := codec.ParseKeys(entry("a", 1))
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{keys, keys[0], &keys[0], struct{ K codec.Key }{keys[0]}} {
			text := fmt.Sprintf(verb, v)
			require.NotContains(t, text, "k\x01")
			require.NotContains(t, text, "6b01")
			require.NotContains(t, text, "107 1")
			require.NotContains(t, text, "0x6b")
		}
	}
}

func TestNewRefusesWhatParseKeysWould(t *testing.T) {
	t.Parallel()
	keys, err := codec.ParseKeys(entry("a", 1))
	require.NoError(t, err)
	_, err = codec.New(append(keys, keys...), nil)
	require.ErrorContains(t, err, `"a"`)
	_, err = codec.New([]codec.Key{{ID: "a"}}, nil)
	require.Error(t, err)
}

func TestDataConverter(t *testing.T) {
	t.Parallel()
	const secret = canary
	dc := newCodec(t, entry("a", 1)).DataConverter()
	sealed, err := dc.ToPayloads(secret, 7)
	require.NoError(t, err)
	for _, p := range sealed.GetPayloads() {
		require.Equal(t, codec.Encoding, string(p.GetMetadata()[converter.MetadataEncoding]))
	}
	var text string
	var number int
	require.NoError(t, dc.FromPayloads(sealed, &text, &number))
	require.Equal(t, secret, text)
	require.Equal(t, 7, number)

	plain, err := converter.GetDefaultDataConverter().ToPayload("old")
	require.NoError(t, err)
	require.NoError(t, dc.FromPayload(plain, &text))
	require.Equal(t, "old", text)
}

// In a workflow a missing key must not look like an outcome of the job.
func TestWorkflowsWaitForTheirKey(t *testing.T) {
	t.Parallel()
	sealed, err := newCodec(t, entry("a", 1)).DataConverter().ToPayloads("x")
	require.NoError(t, err)
	other := newCodec(t, entry("b", 2)).DataConverter()
	var text string
	var unreadable *codec.Error
	require.ErrorAs(t, other.FromPayloads(sealed, &text), &unreadable)
	require.ErrorAs(t, other.FromPayload(sealed.GetPayloads()[0], &text), &unreadable)

	aware, ok := other.(converter.ContextAware)
	require.True(t, ok)
	require.ErrorAs(t, aware.WithContext(t.Context()).FromPayloads(sealed, &text), &unreadable)

	in := aware.WithWorkflowContext(nil)
	for _, read := range []func(){
		func() { _ = in.FromPayloads(sealed, &text) },
		func() { _ = in.FromPayload(sealed.GetPayloads()[0], &text) },
	} {
		require.PanicsWithError(t, unreadable.Error(), read)
	}
	plain, err := converter.GetDefaultDataConverter().ToPayload("text")
	require.NoError(t, err)
	var number int
	require.Error(t, in.FromPayload(plain, &number), "any other error is the workflow's")
}

func TestFailureConverter(t *testing.T) {
	t.Parallel()
	type detail struct{ Text string }
	given := temporal.NewNonRetryableApplicationError(canary, "llm_bad_request", errors.New(canary+" inside"), detail{canary})

	failure := newCodec(t, entry("a", 1)).FailureConverter().ErrorToFailure(given)
	raw, err := proto.Marshal(failure)
	require.NoError(t, err)
	require.NotContains(t, string(raw), "CANARY")
	require.Contains(t, string(raw), "llm_bad_request", "codes are for filters and metrics")

	read := func(c *codec.Codec, sc converter.SerializationContext) error {
		fc := c.FailureConverter()
		if sc != nil {
			fc = converter.WithFailureConverterSerializationContext(fc, sc)
		}
		return fc.FailureToError(proto.Clone(failure).(*failurepb.Failure))
	}
	inWorkflow := converter.ActivitySerializationContext{WorkflowID: "job:agent:1", ActivityType: "RunAgent"}
	inClient := converter.WorkflowSerializationContext{WorkflowID: "job:agent:1"}
	for _, sc := range []converter.SerializationContext{nil, inWorkflow, inClient} {
		var applicationErr *temporal.ApplicationError
		require.ErrorAs(t, read(newCodec(t, entry("b", 2), entry("a", 1)), sc), &applicationErr)
		require.Equal(t, canary, applicationErr.Message())
		require.Equal(t, "llm_bad_request", applicationErr.Type())
		require.True(t, applicationErr.NonRetryable())
		var d detail
		require.NoError(t, applicationErr.Details(&d))
		require.Equal(t, detail{canary}, d)
		require.ErrorContains(t, errors.Unwrap(applicationErr), canary+" inside")
	}

	lacking := newCodec(t, entry("b", 2))
	for _, sc := range []converter.SerializationContext{nil, inClient} {
		require.ErrorContains(t, read(lacking, sc), "Encoded failure", "a client goes on without the text")
	}
	require.Panics(t, func() { _ = read(lacking, inWorkflow) }, "a workflow waits for the key")

	plain := newCodec(t).FailureConverter().ErrorToFailure(given)
	require.Equal(t, canary, plain.GetMessage(), "without keys nothing changes")
	require.ErrorContains(t, newCodec(t, entry("a", 1)).FailureConverter().FailureToError(plain), canary)
}
