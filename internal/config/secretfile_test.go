package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSecretFileFollowsItsFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	put := func(value string) { require.NoError(t, os.WriteFile(path, []byte(value), 0o600)) }
	put("new\n")
	old := time.Now().Add(-2 * secretAge)

	key := &secretFile{path: path, value: "first", read: time.Now()}
	got, err := key.get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "first", got, "young enough")

	key.read = old
	got, err = key.get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "new", got)

	require.NoError(t, os.Remove(path))
	key.read = old
	got, err = key.get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "new", got, "the last one, while there is no file")

	_, err = (&secretFile{path: path}).get(t.Context())
	require.ErrorContains(t, err, "TEMPORAL_API_KEY_FILE")
}

func TestShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 10 * time.Second: "10s", 70 * time.Second: "1m10s", 10 * time.Minute: "10m", 24 * time.Hour: "24h", 90 * time.Minute: "1h30m",
	} {
		require.Equal(t, want, short(d))
	}
}
