package codec_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
)

// Sizes of a payload: an ordinary task, and one with a large document.
func sizes() map[string]int { return map[string]int{"1kB": 1_000, "100kB": 100_000} }

func BenchmarkEncode(b *testing.B) {
	c := newCodec(b, entry("a", 1))
	for name, size := range sizes() {
		b.Run(name, func(b *testing.B) {
			plain := []*commonpb.Payload{payload(strings.Repeat("x", size))}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var err error
			for b.Loop() {
				_, err = c.Encode(plain)
			}
			require.NoError(b, err)
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	c := newCodec(b, entry("a", 1))
	for name, size := range sizes() {
		b.Run(name, func(b *testing.B) {
			sealed := []*commonpb.Payload{encode(b, c, payload(strings.Repeat("x", size)))}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var err error
			for b.Loop() {
				_, err = c.Decode(sealed)
			}
			require.NoError(b, err)
		})
	}
}
