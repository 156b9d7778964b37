package codec_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"

	"github.com/nodpt/executor/internal/codec"
)

const (
	token  = "CANARY-token-0123456789"
	origin = "http://localhost:8233"
)

// refusal is what the server reports of a refused request.
type refusal struct{ reason, origin string }

// serve runs a codec server on the codec; refusals are sent to the channel.
func serve(t *testing.T, c *codec.Codec, secret string) (url string, refusals <-chan refusal) {
	t.Helper()
	told := make(chan refusal, 16)
	server := httptest.NewServer(codec.NewServer(c, codec.ServerConfig{Token: secret, Origin: origin}, func(reason, from string) {
		told <- refusal{reason, from}
	}).Handler)
	t.Cleanup(server.Close)
	return server.URL, told
}

// response is what is looked at of one.
type response struct {
	StatusCode int
	Header     http.Header
}

func request(t *testing.T, method, url, body string, headers ...string) (response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return response{resp.StatusCode, resp.Header}, string(text)
}

// sealed is a request body with one encrypted payload.
func sealed(t *testing.T, c *codec.Codec) string {
	t.Helper()
	body, err := json.Marshal(commonpb.Payloads{Payloads: []*commonpb.Payload{encode(t, c, payload(canary))}})
	require.NoError(t, err)
	return string(body)
}

// The SDK's own client, which the Temporal CLI uses as well, shows the token as
// a header; the UI has only the address.
func TestServerRoundTrip(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("b", 2), entry("a", 1))
	url, refusals := serve(t, c, token)
	for name, remote := range map[string]converter.PayloadCodec{
		"bearer token": converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{
			Endpoint: url,
			ModifyRequest: func(r *http.Request) error {
				r.Header.Set("Authorization", "Bearer "+token)
				return nil
			},
		}),
		"path": converter.NewRemotePayloadCodec(converter.RemotePayloadCodecOptions{Endpoint: url + "/" + token}),
	} {
		older := encode(t, newCodec(t, entry("a", 1)), payload(canary))
		decoded, err := remote.Decode([]*commonpb.Payload{older, payload("clear")})
		require.NoError(t, err, name)
		requireEqual(t, payload(canary), decoded[0])
		requireEqual(t, payload("clear"), decoded[1])

		encoded, err := remote.Encode([]*commonpb.Payload{payload(canary)})
		require.NoError(t, err, name)
		require.Equal(t, "b", string(encoded[0].GetMetadata()[codec.MetadataKeyID]))
		opened, err := decode(c, encoded[0])
		require.NoError(t, err)
		requireEqual(t, payload(canary), opened)
	}
	require.Empty(t, refusals)
}

// TestServerAsTheBrowserCalls makes the requests that the Web UI makes.
func TestServerAsTheBrowserCalls(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("a", 1))
	url, refusals := serve(t, c, token)
	endpoint := url + "/" + token + "/decode?preserveStorageRefs=true"

	resp, _ := request(t, http.MethodOptions, endpoint, "", "Origin", origin,
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,x-namespace")
	require.Equal(t, http.StatusNoContent, resp.StatusCode)
	require.Equal(t, origin, resp.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "POST", resp.Header.Get("Access-Control-Allow-Methods"))
	for _, header := range []string{"content-type", "x-namespace", "authorization"} {
		require.Contains(t, resp.Header.Get("Access-Control-Allow-Headers"), header)
	}
	require.Empty(t, resp.Header.Get("Access-Control-Allow-Credentials"))
	require.Equal(t, "Origin", resp.Header.Get("Vary"))

	resp, body := request(t, http.MethodPost, endpoint, sealed(t, c), "Origin", origin, "Content-Type", "application/json", "X-Namespace", "default")
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	require.Equal(t, origin, resp.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
	require.NotContains(t, body, codec.Encoding)
	require.Empty(t, refusals)
}

func TestServerRefuses(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("a", 1))
	bearer := []string{"Authorization", "Bearer " + token}
	for name, tt := range map[string]struct {
		method, path string
		headers      []string
		status       int
		reason       string
	}{
		"no token":                     {"POST", "/decode", nil, 401, codec.RefusedToken},
		"no token from the UI":         {"POST", "/decode", []string{"Origin", origin}, 401, codec.RefusedToken},
		"wrong token":                  {"POST", "/decode", []string{"Authorization", "Bearer " + token + "x"}, 401, codec.RefusedToken},
		"a part of the token":          {"POST", "/decode", []string{"Authorization", "Bearer " + token[:10]}, 401, codec.RefusedToken},
		"empty token":                  {"POST", "/decode", []string{"Authorization", "Bearer "}, 401, codec.RefusedToken},
		"another scheme":               {"POST", "/decode", []string{"Authorization", "Basic " + token}, 401, codec.RefusedToken},
		"wrong path":                   {"POST", "/not-the-token/decode", nil, 401, codec.RefusedToken},
		"wrong path, right header":     {"POST", "/not-the-token/decode", bearer, 401, codec.RefusedToken},
		"encode without token":         {"POST", "/encode", nil, 401, codec.RefusedToken},
		"another origin":               {"POST", "/decode", append([]string{"Origin", "http://evil.example"}, bearer...), 403, codec.RefusedOrigin},
		"the UI by another name":       {"POST", "/" + token + "/decode", []string{"Origin", "http://127.0.0.1:8233"}, 403, codec.RefusedOrigin},
		"the UI by another scheme":     {"POST", "/" + token + "/decode", []string{"Origin", "https://localhost:8233"}, 403, codec.RefusedOrigin},
		"a sandboxed page":             {"POST", "/" + token + "/decode", []string{"Origin", "null"}, 403, codec.RefusedOrigin},
		"preflight of another origin":  {"OPTIONS", "/decode", []string{"Origin", "http://evil.example", "Access-Control-Request-Method", "POST"}, 403, codec.RefusedOrigin},
		"preflight of a longer origin": {"OPTIONS", "/decode", []string{"Origin", origin + ".evil.example"}, 403, codec.RefusedOrigin},
		"preflight without origin":     {"OPTIONS", "/decode", nil, 403, codec.RefusedOrigin},
		"reading":                      {"GET", "/decode", bearer, 405, ""},
		"another path":                 {"POST", "/download", bearer, 404, ""},
		"a longer path":                {"POST", "/a/" + token + "/decode", bearer, 404, ""},
		"the root":                     {"GET", "/", bearer, 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, refusals := serve(t, c, token)
			resp, body := request(t, tt.method, url+tt.path, sealed(t, c), tt.headers...)
			require.Equal(t, tt.status, resp.StatusCode)
			require.NotContains(t, body, "CANARY")
			require.NotContains(t, resp.Header.Get("Access-Control-Allow-Origin"), "evil")
			if tt.reason == "" {
				require.Empty(t, refusals)
				return
			}
			told := <-refusals
			require.Equal(t, tt.reason, told.reason)
			require.NotContains(t, told.origin, "CANARY")
		})
	}
}

// A page may read why it was refused, if it is the UI's; others may not.
func TestServerTellsTheUIWhy(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, newCodec(t, entry("a", 1)), token)
	resp, body := request(t, http.MethodPost, url+"/decode", "{}", "Origin", origin)
	require.Equal(t, origin, resp.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, body, "CODEC_TOKEN")
	resp, body = request(t, http.MethodPost, url+"/decode", "{}", "Origin", "http://evil.example")
	require.Empty(t, resp.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, body, "CODEC_ORIGIN")

	lacking, _ := serve(t, newCodec(t, entry("b", 2)), token)
	resp, body = request(t, http.MethodPost, lacking+"/"+token+"/decode", sealed(t, newCodec(t, entry("a", 1))))
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	require.Contains(t, body, "ENCRYPTION_KEYS")
}

func TestServerWithoutTokenOpensForNobody(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("a", 1))
	url, _ := serve(t, c, "")
	for _, headers := range [][]string{nil, {"Authorization", "Bearer "}, {"Authorization", "Bearer"}} {
		resp, _ := request(t, http.MethodPost, url+"/decode", sealed(t, c), headers...)
		require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	}
}

func TestServerLimits(t *testing.T) {
	t.Parallel()
	c := newCodec(t, entry("a", 1))
	url, _ := serve(t, c, token)
	resp, _ := request(t, http.MethodPost, url+"/"+token+"/decode", strings.Repeat(" ", 16<<20+1))
	require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
	for _, body := range []string{"", "{", "[]", `{"payloads":[null]}`, `{"payloads":[{"metadata":{"encoding":"YmluYXJ5L2VuY3J5cHRlZA=="}}]}`} {
		resp, _ := request(t, http.MethodPost, url+"/"+token+"/decode", body)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, body)
	}
	resp, body := request(t, http.MethodGet, url+"/healthz", "")
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "ok\n", body)

	server := codec.NewServer(c, codec.ServerConfig{Addr: "127.0.0.1:8234"}, nil)
	require.Equal(t, "127.0.0.1:8234", server.Addr)
	for _, timeout := range []int64{int64(server.ReadHeaderTimeout), int64(server.ReadTimeout), int64(server.WriteTimeout), int64(server.IdleTimeout)} {
		require.Positive(t, timeout)
	}
}
