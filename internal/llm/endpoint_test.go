package llm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEndpointsRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ endpoint, reason string }{
		"empty":            {" ", "is empty"},
		"no scheme":        {"localhost:11434/v1/chat/completions", "must begin with http"},
		"other scheme":     {"ftp://localhost/", "must begin with http"},
		"no host":          {"http:///v1/chat/completions", "names no host"},
		"bad port":         {"http://localhost:port/", "not a valid URL"},
		"impossible port":  {"http://localhost:99999/", "impossible port"},
		"control":          {"http://local\nhost/", "not a valid URL"},
		"metadata":         {"http://169.254.169.254/", "metadata address"},
		"metadata, https":  {"https://169.254.169.254/", "metadata address"},
		"link-local range": {"http://169.254.1.2:80/x", "link-local"},
		"mapped":           {"http://[::ffff:169.254.169.254]/", "link-local"},
		"NAT64":            {"http://[64:ff9b::a9fe:a9fe]/", "link-local"},
		"IPv6 link-local":  {"http://[fe80::1]/", "link-local"},
		"with a zone":      {"http://[fe80::1%25eth0]/", "link-local"},
		"upper end":        {"http://[febf::1]/", "link-local"},
		"Amazon":           {"http://[fd00:ec2::254]/", "metadata"},
		"Google":           {"http://[fd20:ce::254]/", "metadata"},
		"Scaleway":         {"http://[fd00:42::42]/", "metadata"},
		"Alibaba":          {"http://100.100.100.200/", "metadata"},
		"Azure":            {"http://168.63.129.16/", "metadata"},
		"metadata by name": {"http://Metadata.Google.Internal./computeMetadata", "metadata"},
		"instance data":    {"https://instance-data.ec2.internal/", "metadata"},
		"public name":      {"http://llm.example.com/v1/chat/completions", "over the internet in clear text"},
		"public":           {"http://8.8.8.8/v1/chat/completions", "clear text"},
		"public IPv6":      {"http://[2001:4860:4860::8888]/v1/chat/completions", "clear text"},
		"public mapped":    {"http://[::ffff:8.8.8.8]/v1/chat/completions", "clear text"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Endpoint: test.endpoint, APIKey: "key"}
			_, err := New(cfg)
			var configErr *ConfigError
			require.ErrorAs(t, err, &configErr)
			require.Equal(t, "LLM_ENDPOINT", configErr.Setting)
			require.ErrorContains(t, err, "LLM_ENDPOINT ")
			require.ErrorContains(t, err, test.reason)
			require.EqualError(t, cfg.Validate(), err.Error())
			require.Contains(t, cfg.String(), "invalid endpoint")
		})
	}
}

func TestEndpointsAccepted(t *testing.T) {
	t.Parallel()
	const path = "/v1/chat/completions"
	tests := map[string]struct {
		cfg      Config
		endpoint string
		warnings []string // a part of each
	}{
		"loopback":      {Config{Endpoint: "http://127.0.0.1:11434" + path, APIKey: "k"}, "http://127.0.0.1:11434" + path, nil},
		"loopback IPv6": {Config{Endpoint: "http://[::1]:11434" + path}, "http://[::1]:11434" + path, nil},
		"localhost":     {Config{Endpoint: "http://localhost:11434" + path}, "http://localhost:11434" + path, nil},
		"unspecified":   {Config{Endpoint: "http://0.0.0.0:11434" + path}, "http://0.0.0.0:11434" + path, nil},
		"https":         {Config{Endpoint: "https://8.8.8.8" + path, APIKey: "k"}, "https://8.8.8.8" + path, nil},
		"surrounded":    {Config{Endpoint: " https://llm.example" + path + "\n"}, "https://llm.example" + path, nil},
		"private":       {Config{Endpoint: "http://10.1.2.3" + path}, "http://10.1.2.3" + path, []string{"prompts and answers cross"}},
		"private, key":  {Config{Endpoint: "http://192.168.1.2" + path, APIKey: "k"}, "http://192.168.1.2" + path, []string{"and the API key cross"}},
		"overlay":       {Config{Endpoint: "http://100.64.0.7" + path}, "http://100.64.0.7" + path, []string{"clear text to 100.64.0.7"}},
		"unique local":  {Config{Endpoint: "http://[fd12::1]" + path}, "http://[fd12::1]" + path, []string{"clear text"}},
		"public, allowed": {
			Config{Endpoint: "http://llm.example.com" + path, APIKey: "k", AllowClearText: true},
			"http://llm.example.com" + path,
			[]string{"and the API key cross"},
		},
		"name":          {Config{Endpoint: "http://ollama:11434" + path}, "http://ollama:11434" + path, []string{"clear text to ollama"}},
		"Ollama's path": {Config{Endpoint: "http://localhost:11434/api/chat"}, "http://localhost:11434" + path, []string{"/api/chat"}},
		"base URL":      {Config{Endpoint: "https://api.example/v1"}, "https://api.example/v1", []string{"used as it is"}},
		"host only":     {Config{Endpoint: "https://api.example"}, "https://api.example", []string{"used as it is"}},
		"allowed by name": {
			Config{Endpoint: "http://169.254.169.254" + path, AllowLinkLocal: true},
			"http://169.254.169.254" + path,
			[]string{"clear text"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := open(t, test.cfg)
			require.NoError(t, test.cfg.Validate())
			require.Equal(t, test.endpoint, c.Endpoint())
			require.Len(t, c.Warnings(), len(test.warnings), c.Warnings())
			for i, part := range test.warnings {
				require.Contains(t, c.Warnings()[i], part)
			}
		})
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Endpoint: "nowhere", APIKey: "sk-CANARY\nsecond line"})
	require.ErrorContains(t, err, "LLM_ENDPOINT")
	require.ErrorContains(t, err, "LLM_API_KEY")
	require.NotContains(t, err.Error(), "CANARY")
	_, err = New(Config{Endpoint: "http://CANARY:CANARY@host:CANARY/?CANARY"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "CANARY")
}

func TestEndpointKey(t *testing.T) {
	t.Parallel()
	key := func(endpoint string) string { return open(t, Config{Endpoint: endpoint}).EndpointKey() }
	base := key("https://llm.example/v1/chat/completions")
	require.Len(t, base, 16)
	require.Empty(t, strings.Trim(base, "0123456789abcdef"))
	require.Equal(t, base, key("https://LLM.example/v1/chat/completions"))
	require.Equal(t, base, key("https://user:pass@llm.example/v1/chat/completions?api-version=1"))
	require.NotEqual(t, base, key("https://llm.example/v2/chat/completions"))
	require.NotEqual(t, base, key("https://other.example/v1/chat/completions"))
}
