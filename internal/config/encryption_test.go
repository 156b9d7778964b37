package config_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/codec"
)

func encryptionKey(id string) string {
	return id + ":" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(canary+"-", 4)[:32]))
}

func TestEncryption(t *testing.T) {
	t.Parallel()
	require.Empty(t, load(t, nil).Encryption(), "off unless it is asked for")
	for name, env := range map[string]environ{
		"environment": {"ENCRYPTION_KEYS": encryptionKey("b") + "," + encryptionKey("a")},
		"file":        {"ENCRYPTION_KEYS_FILE": write(t, encryptionKey("b")+"\n"+encryptionKey("a")+"\n")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := load(t, env)
			keys := c.Encryption()
			require.Len(t, keys, 2)
			require.Equal(t, "b", keys[0].ID)
			require.Equal(t, "a", keys[1].ID)
			for _, s := range c.Redacted() {
				if s.Name == "ENCRYPTION_KEYS" {
					require.Equal(t, "b:[redacted],a:[redacted]", s.Value, "the ids tell which key is in force")
				}
			}
		})
	}
}

func TestEncryptionMistakes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		env  environ
		want map[string]string
	}{
		{"second key", environ{"ENCRYPTION_KEYS": encryptionKey("a") + ",b:" + canary}, map[string]string{"ENCRYPTION_KEYS": "key 2 must have the base64 of exactly 32 bytes"}},
		{"one id twice", environ{"ENCRYPTION_KEYS": encryptionKey("a") + "\n" + encryptionKey("a")}, map[string]string{"ENCRYPTION_KEYS": "key 2 has the id of key 1"}},
		{"only commas", environ{"ENCRYPTION_KEYS": ",,"}, map[string]string{"ENCRYPTION_KEYS": "no key"}},
		{"from a file", environ{"ENCRYPTION_KEYS_FILE": write(t, canary)}, map[string]string{"ENCRYPTION_KEYS": "key 1 must be"}},
		{"short token", environ{"CODEC_TOKEN": canary}, map[string]string{"CODEC_TOKEN": "20 to 200"}},
		{"token that is no path", environ{"CODEC_TOKEN": strings.Repeat(canary+"/", 4)}, map[string]string{"CODEC_TOKEN": "letters, digits"}},
		{"address", environ{"CODEC_ADDR": "8234"}, map[string]string{"CODEC_ADDR": "host:port"}},
		{"any origin", environ{"CODEC_ORIGIN": "*"}, map[string]string{"CODEC_ORIGIN": "one origin"}},
		{"two origins", environ{"CODEC_ORIGIN": "http://a,http://b"}, map[string]string{"CODEC_ORIGIN": "one origin"}},
		{"a page", environ{"CODEC_ORIGIN": "https://ui.internal/temporal"}, map[string]string{"CODEC_ORIGIN": "one origin"}},
		{"a file's origin", environ{"CODEC_ORIGIN": "null"}, map[string]string{"CODEC_ORIGIN": "one origin"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			found := mistakes(t, tt.env)
			require.Len(t, found, len(tt.want), "%v", found)
			for variable, part := range tt.want {
				require.Contains(t, found[variable], part)
				require.NotContains(t, found[variable], "CANARY")
			}
		})
	}
}

func TestCodecServer(t *testing.T) {
	t.Parallel()
	token := strings.Repeat("t0-._~", 5)
	for _, tt := range []struct {
		name string
		env  environ
		want codec.ServerConfig
	}{
		{"defaults", nil, codec.ServerConfig{Addr: "127.0.0.1:8234", Origin: "http://127.0.0.1:8233"}},
		{
			"all set",
			environ{"CODEC_ADDR": "[::1]:1", "CODEC_TOKEN": token, "CODEC_ORIGIN": "HTTPS://UI.example.com:443/", "TEMPORAL_UI_URL": "http://other"},
			codec.ServerConfig{Addr: "[::1]:1", Token: token, Origin: "https://ui.example.com"},
		},
		{"origin of the UI", environ{"TEMPORAL_UI_URL": "https://Apps.internal:8443/temporal/"}, codec.ServerConfig{Addr: "127.0.0.1:8234", Origin: "https://apps.internal:8443"}},
		{"port that browsers leave out", environ{"TEMPORAL_UI_URL": "http://127.0.0.1:80"}, codec.ServerConfig{Addr: "127.0.0.1:8234", Origin: "http://127.0.0.1"}},
		{"IPv6", environ{"TEMPORAL_UI_URL": "http://[::1]:8233"}, codec.ServerConfig{Addr: "127.0.0.1:8234", Origin: "http://[::1]:8233"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, load(t, tt.env).CodecServer())
		})
	}
	for addr, beyond := range map[string]bool{
		"127.0.0.1:1": false, "localhost:1": false, "[::1]:1": false, "127.8.8.8:1": false,
		":8234": true, "0.0.0.0:1": true, "[::]:1": true, "10.0.0.1:1": true, "codec:8234": true,
	} {
		warnings := strings.Join(load(t, environ{"CODEC_ADDR": addr, "MAX_TOTAL": "1"}).Warnings(), "\n")
		require.Equal(t, beyond, strings.Contains(warnings, "CODEC_ADDR"), "%s: %s", addr, warnings)
	}
}
