package codec_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"

	"github.com/nodpt/executor/internal/codec"
)

// FuzzDecode hands the decoder what only somebody with a hand in Temporal's
// database could: it must refuse all of it with its own error, or pass it on
// untouched where it does not claim to be encrypted.
func FuzzDecode(f *testing.F) {
	c := newCodec(f, entry("a", 1), entry("b", 2))
	sealed := encode(f, c, payload("hello"))
	f.Add(codec.Encoding, "a", sealed.GetData())
	f.Add(codec.Encoding, "b", sealed.GetData())
	f.Add(codec.Encoding, "", sealed.GetData()[:12])
	f.Add("json/plain", "a", []byte(`"x"`))
	f.Fuzz(func(t *testing.T, encoding, id string, data []byte) {
		p := &commonpb.Payload{
			Metadata: map[string][]byte{converter.MetadataEncoding: []byte(encoding), codec.MetadataKeyID: []byte(id)},
			Data:     data,
		}
		before := proto.Clone(p)
		got, err := decode(c, p)
		require.True(t, proto.Equal(before, p), "the payload given was changed")
		switch {
		case encoding != codec.Encoding:
			require.NoError(t, err)
			require.Same(t, p, got)
		case err != nil:
			var unreadable *codec.Error
			require.ErrorAs(t, err, &unreadable)
			require.LessOrEqual(t, len(err.Error()), 256)
		default: // only what a key itself has sealed can be opened: the seed
			requireEqual(t, payload("hello"), got)
			require.Equal(t, "a", id)
		}
	})
}
