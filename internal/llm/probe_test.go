package llm

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/llm/llmtest"
)

// What servers answer to an empty object at their chat endpoint, and what that
// means.
func TestCheckEndpoint(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status int
		header http.Header
		body   string
		kind   Kind // empty: an endpoint
		code   string
		key    bool
	}{
		"OpenAI":                   {status: 400, body: `{"error":{"message":"you must provide a model parameter","type":"invalid_request_error","param":null,"code":null}}`},
		"vLLM":                     {status: 400, body: `{"error":{"message":"Field required","type":"Bad Request","param":null,"code":400}}`},
		"TensorRT-LLM":             {status: 400, body: `{"error":"2 validation errors"}`},
		"Ollama":                   {status: 400, body: `{"error":{"message":"[] is too short - 'messages'","type":"invalid_request_error","param":null,"code":null}}`},
		"llama.cpp":                {status: 400, body: `{"error":{"code":400,"message":"'messages' is required","type":"invalid_request_error"}}`},
		"llama.cpp, older":         {status: 500, body: `{"error":{"code":500,"message":"'messages' is required","type":"server_error"}}`},
		"any FastAPI":              {status: 422, body: `{"detail":[{"type":"missing","loc":["body","messages"]}]}`},
		"unknown path":             {status: 404, body: `{"detail":"Not Found"}`, kind: Misconfigured},
		"unknown path, with code":  {status: 404, body: `{"error":{"code":"unknown_url"}}`, kind: Misconfigured, code: "unknown_url"},
		"other method":             {status: 405, body: `{"detail":"Method Not Allowed"}`, kind: Misconfigured},
		"static pages":             {status: 501, kind: Misconfigured},
		"a page":                   {status: 200, body: `<html>Open WebUI</html>`, kind: Misconfigured, code: CodeNoChat},
		"a redirect":               {status: 308, header: http.Header{"Location": {"https://other/"}}, kind: Misconfigured, code: CodeRedirect},
		"plain http to https":      {status: 400, body: "Client sent an HTTP request to an HTTPS server.\n", kind: Misconfigured, code: CodeHTTPSExpected},
		"wrong key":                {status: 401, body: `{"error":{"code":"invalid_api_key"}}`, kind: Misconfigured, code: "invalid_api_key", key: true},
		"key without right":        {status: 403, kind: Misconfigured, key: true},
		"account used up":          {status: 429, body: `{"error":{"code":"insufficient_quota"}}`, kind: Quota, code: "insufficient_quota"},
		"too many requests":        {status: 429, kind: RateLimited},
		"still loading":            {status: 503, body: `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`, kind: ServerError, code: "503"},
		"nobody behind the proxy":  {status: 502, body: `<html>`, kind: ServerError},
		"a rejection of another 4": {status: 418},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				sent, err := io.ReadAll(r.Body)
				if err != nil || string(sent) != "{}" || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer geheim" {
					w.WriteHeader(http.StatusTeapot)
				}
				maps.Copy(w.Header(), tt.header)
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}, func(cfg *Config) { cfg.APIKey = "geheim" })
			err := c.CheckEndpoint(t.Context())
			if tt.kind == "" {
				require.NoError(t, err)
				return
			}
			e := requireError(t, err)
			require.Equal(t, tt.kind, e.Kind, e)
			require.Equal(t, tt.status, e.Status)
			if tt.code != "" {
				require.Equal(t, tt.code, e.Code)
			}
			require.Equal(t, tt.key, KeyRefused(err))
		})
	}
	require.False(t, KeyRefused(nil))
}

func TestProbesOfServersOutOfReach(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then is it noticed that the client has left
		<-r.Context().Done()
	}))
	t.Cleanup(hanging.Close)
	cutting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "[")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	cutting.Config.ErrorLog = discardLog()
	t.Cleanup(cutting.Close)
	for name, tt := range map[string]struct {
		url  string
		kind Kind
		code string
	}{
		"refused":  {server.URL, Unreachable, "connection_refused"},
		"no name":  {"http://llm.invalid", Unreachable, "name_not_resolved"},
		"not TLS":  {"https" + hanging.URL[len("http"):], Misconfigured, "https_to_http_port"},
		"silent":   {hanging.URL, Timeout, ""},
		"cut":      {cutting.URL, Unreachable, "cut_body"},
		"metadata": {"http://[::ffff:a9fe:a9fe]", Misconfigured, "address_refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timeout := time.Minute
			if tt.kind == Timeout {
				timeout = 200 * time.Millisecond
			}
			c, err := newClient(Config{Endpoint: "http://localhost/v1/chat/completions", Timeout: timeout}, newDialer(false))
			require.NoError(t, err)
			t.Cleanup(c.Close)
			at, err := c.endpoint.Parse(tt.url + "/v1/chat/completions")
			require.NoError(t, err)
			c.endpoint = at
			for _, probe := range []func() error{
				func() error { return c.CheckEndpoint(t.Context()) },
				func() error { _, err := c.Models(t.Context()); return err },
			} {
				e := requireError(t, probe())
				require.Equal(t, tt.kind, e.Kind, e)
				require.Equal(t, tt.code, e.Code)
			}
			_, found := c.FindEndpoint(t.Context())
			require.False(t, found)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := open(t, Config{Endpoint: hanging.URL})
		require.Equal(t, Canceled, requireError(t, c.CheckEndpoint(ctx)).Kind)
	})
}

// The stand-in answers the probes as real servers do, and counts no call.
func TestProbesCostNothing(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t, llmtest.Options{APIKey: "geheim", Models: []string{"a", "b:latest"}})
	c := open(t, Config{Endpoint: stub.Endpoint(), APIKey: "geheim"})
	require.NoError(t, c.CheckEndpoint(t.Context()))
	models, err := c.Models(t.Context())
	require.NoError(t, err)
	require.Equal(t, []Model{{ID: "a", Owner: "mock"}, {ID: "b:latest", Owner: "mock"}}, models)

	other := open(t, Config{Endpoint: stub.Endpoint(), APIKey: "wrong"})
	require.True(t, KeyRefused(other.CheckEndpoint(t.Context())))
	_, err = other.Models(t.Context())
	require.True(t, KeyRefused(err))

	stub.Script(func(o *llmtest.Options) { o.NoModelList = true })
	_, err = c.Models(t.Context())
	require.Equal(t, CodeNoList, requireError(t, err).Code)
	require.Zero(t, stub.Stats().Calls)
}

func TestFindEndpoint(t *testing.T) {
	t.Parallel()
	for right, wrongs := range map[string][]string{
		"/v1/chat/completions": {
			"/v1", "/v1/", "/", "/v1/completions", "/chat/completions", "/v1/chat", "/api/generate",
			"/v1/chat/completions/v1/chat/completions", "/v1/models",
		},
		"/llm/v1/chat/completions":    {"/llm", "/llm/v1", "/llm/v1/completions"},
		"/openai/v1/chat/completions": {"/v1/chat/completions", "/openai"},
		"/api/v1/chat/completions":    {"/v1/chat/completions"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != right {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.WriteHeader(http.StatusBadRequest)
		}))
		t.Cleanup(server.Close)
		for _, wrong := range wrongs {
			c := open(t, Config{Endpoint: "http://user:geheim@" + server.Listener.Addr().String() + wrong + "?key=geheim"})
			require.Error(t, c.CheckEndpoint(t.Context()), wrong)
			found, ok := c.FindEndpoint(t.Context())
			require.True(t, ok, wrong)
			require.Equal(t, server.URL+right, found)
		}
	}
	c := serve(t, respond(http.StatusUnauthorized, ""))
	_, ok := c.FindEndpoint(t.Context())
	require.False(t, ok, "a server that refuses the key says nothing about its paths")
}

func TestModels(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status int
		body   string
		want   []Model // nil: no list
	}{
		"OpenAI":           {200, `{"object":"list","data":[{"id":"gpt-4o","object":"model","created":1,"owned_by":"system"}]}`, []Model{{ID: "gpt-4o", Owner: "system"}}},
		"Ollama":           {200, `{"object":"list","data":[{"id":"llama3:latest","owned_by":"library"}]}`, []Model{{ID: "llama3:latest", Owner: "library"}}},
		"Ollama, none":     {200, `{"object":"list","data":null}`, []Model{}},
		"llama.cpp":        {200, `{"models":[{}],"object":"list","data":[{"id":"x.gguf","aliases":["x"],"owned_by":"llamacpp","meta":{}}]}`, []Model{{ID: "x.gguf", Owner: "llamacpp", Loaded: true}, {ID: "x", Owner: "llamacpp", Loaded: true}}},
		"llama.cpp router": {200, `{"data":[{"id":"x","owned_by":"llamacpp","status":{"value":"unloaded"}}]}`, []Model{{ID: "x", Owner: "llamacpp"}}},
		"a bare list":      {200, `[{"id":"m"}]`, []Model{{ID: "m"}}},
		"nothing in it":    {200, `{"data":[]}`, []Model{}},
		"no ids":           {200, `{"data":[{}]}`, []Model{}},
		"another document": {200, `{"status":"ok"}`, nil},
		"not a list":       {200, `{"data":{"id":"m"}}`, nil},
		"a page":           {200, `<html>`, nil},
		"empty":            {200, ``, nil},
		"not there":        {404, `{}`, nil},
		"not allowed":      {405, ``, nil},
		"not understood":   {400, ``, nil},
		"elsewhere":        {302, ``, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			models, err := serve(t, respond(tt.status, tt.body)).Models(t.Context())
			if tt.want == nil {
				e := requireError(t, err)
				require.Equal(t, Misconfigured, e.Kind)
				require.Equal(t, CodeNoList, e.Code)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, models)
		})
	}
	t.Run("trouble of the server", func(t *testing.T) {
		t.Parallel()
		_, err := serve(t, respond(http.StatusServiceUnavailable, "")).Models(t.Context())
		require.Equal(t, ServerError, requireError(t, err).Kind)
	})
}

func TestModelsURL(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		"http://localhost/v1/chat/completions":                     "http://localhost/v1/models",
		"http://localhost/v1/chat/completions/":                    "http://localhost/v1/models",
		"http://localhost/openai/v1/chat/completions":              "http://localhost/openai/v1/models",
		"http://localhost/deployments/x/chat/completions?v=1":      "http://localhost/deployments/x/models?v=1",
		"http://localhost/api/chat":                                "http://localhost/v1/models",
		"http://localhost/v1":                                      "http://localhost/v1/models",
		"http://localhost/proxy/v1/chat":                           "http://localhost/proxy/v1/models",
		"http://localhost":                                         "http://localhost/v1/models",
		"http://localhost/something":                               "http://localhost/v1/models",
		"http://user:pw@localhost:8000/v1/chat/completions?key=kk": "http://user:pw@localhost:8000/v1/models?key=kk",
	} {
		require.Equal(t, want, open(t, Config{Endpoint: endpoint}).modelsURL().String())
	}
}

func TestOffers(t *testing.T) {
	t.Parallel()
	list := []Model{{ID: "llama3:latest"}, {ID: "m:7b"}, {ID: "openai/*"}}
	for name, want := range map[string]bool{
		"llama3": true, "llama3:latest": true, "llama": false, "m": false, "m:7b": true, "openai/gpt-4o": true, "openai": false, "LLAMA3": false,
	} {
		require.Equal(t, want, Offers(list, name), name)
	}
	require.True(t, Offers([]Model{{ID: "x.gguf", Loaded: true}}, "anything"))
	require.True(t, Offers([]Model{{ID: "*"}}, "anything"))
	require.False(t, Offers(nil, "anything"))
}
