package llm

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/llm/llmtest"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

func compress(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = io.WriteString(z, text)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

// Neither followed nor taken for an answer, and the key stays here.
func TestRedirectsAreRefused(t *testing.T) {
	t.Parallel()
	for _, status := range []int{300, 301, 302, 303, 304, 307, 308} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				t.Errorf("followed to %s with Authorization %q", r.URL, r.Header.Get("Authorization"))
			}))
			t.Cleanup(other.Close)
			c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", other.URL)
				if status == http.StatusNotModified {
					w.WriteHeader(status)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"not an answer"}}]}`)
			}, func(cfg *Config) { cfg.APIKey = "secret" })
			_, err := ask(t.Context(), c)
			require.Equal(t, &Error{Kind: Misconfigured, Status: status, Code: "redirect"}, requireError(t, err))
		})
	}
}

// The URL is called as configured, whatever go-openai would make of it.
func TestEndpointVerbatim(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/v1/chat/completions":                          "/v1/chat/completions",
		"/v1/chat/completions?api-version=2024&a=b%20c": "/v1/chat/completions?api-version=2024&a=b%20c",
		"/openai/deployments/x%2Fy/chat?z=1":            "/openai/deployments/x%2Fy/chat?z=1",
		"/v1/chat/completions/":                         "/v1/chat/completions/",
		"/ask":                                          "/ask",
		"":                                              "/",
		"/api/chat":                                     "/v1/chat/completions",
		"/api/chat/":                                    "/v1/chat/completions",
		"/ollama/api/chat?x=1":                          "/ollama/v1/chat/completions?x=1",
		"/api/chat/completions":                         "/api/chat/completions",
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			got := make(chan *http.Request, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got <- r
				says("ok")(w, r)
			}))
			t.Cleanup(server.Close)
			_, err := ask(t.Context(), open(t, Config{Endpoint: server.URL + path}))
			require.NoError(t, err)
			r := <-got
			require.Equal(t, want, r.RequestURI)
			require.Equal(t, http.MethodPost, r.Method)
			require.Equal(t, strings.TrimPrefix(server.URL, "http://"), r.Host)
		})
	}
}

// Fault F53 and C13.
func TestResponseSize(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	small := func(cfg *Config) { cfg.MaxResponse = limit }
	tooLarge := &Error{Kind: TooLarge, Status: 200, Code: "response_too_large"}
	bomb := compress(t, strings.Repeat("a", 20<<20))
	require.Less(t, len(bomb), 256<<10)

	t.Run("announced", func(t *testing.T) {
		t.Parallel()
		_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "50000000")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, small))
		require.Equal(t, tooLarge, requireError(t, err))
	})
	t.Run("endless", func(t *testing.T) {
		t.Parallel()
		sent := make(chan int, 1)
		_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) {
			total := 0
			defer func() { sent <- total }()
			for {
				n, err := w.Write(bytes.Repeat([]byte("x"), 64<<10))
				total += n
				if err != nil {
					return
				}
			}
		}, small))
		require.Equal(t, tooLarge, requireError(t, err))
		require.Less(t, <-sent, 50_000_000)
	})
	t.Run("bomb", func(t *testing.T) {
		t.Parallel()
		_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb)
		}, small))
		require.Equal(t, tooLarge, requireError(t, err))
		inflated, err := gunzip(bomb, limit+1)
		require.NoError(t, err)
		require.Len(t, inflated, limit+1, "no more than the limit is inflated")
	})
	t.Run("bomb in an error", func(t *testing.T) {
		t.Parallel()
		_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write(bomb)
		}, small))
		require.Equal(t, &Error{Kind: ServerError, Status: 502}, requireError(t, err))
	})
	t.Run("few bytes that become much memory", func(t *testing.T) {
		t.Parallel()
		body := func(n int) string {
			return `{"choices":[{"message":{"content":"hi"}}` + strings.Repeat(",{}", n) + `]}`
		}
		_, err := ask(t.Context(), serve(t, respond(200, body(maxElements))))
		require.Equal(t, &Error{Kind: Malformed, Status: 200, Code: "too_many_elements"}, requireError(t, err))
		_, err = ask(t.Context(), serve(t, respond(200, body(100))))
		require.NoError(t, err)
		// Text is not counted, however much it looks like JSON.
		answer, err := ask(t.Context(), serve(t, says(strings.Repeat(`{"a\\":[1,2]},`, maxElements))))
		require.NoError(t, err)
		require.Len(t, answer.Text, maxElements*len(`{"a\\":[1,2]},`))
	})
	t.Run("exactly the limit", func(t *testing.T) {
		t.Parallel()
		body := `{"choices":[{"message":{"content":"hi"}}]}`
		_, err := ask(t.Context(), serve(t, respond(200, body), func(cfg *Config) { cfg.MaxResponse = int64(len(body)) }))
		require.NoError(t, err)
		_, err = ask(t.Context(), serve(t, respond(200, body), func(cfg *Config) { cfg.MaxResponse = int64(len(body)) - 1 }))
		require.Equal(t, tooLarge, requireError(t, err))
	})
}

// Compression nobody asked for is undone, within the same limit.
func TestUnaskedCompression(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t)
	answer, err := open(t, Config{Endpoint: stub.Endpoint()}).Complete(t.Context(), Request{Model: "m", Prompt: "!gzip"})
	require.NoError(t, err)
	require.Contains(t, answer.Text, "Mock answer")

	whole := compress(t, `{"choices":[{"message":{"content":"hi"}}]}`)
	for name, body := range map[string][]byte{
		"not gzip": []byte(`{"choices":[{"message":{"content":"hi"}}]}`),
		"half":     whole[:len(whole)/2],
		"empty":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ask(t.Context(), serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				_, _ = w.Write(body)
			}))
			require.Equal(t, &Error{Kind: Malformed, Status: 200, Code: "invalid_gzip"}, requireError(t, err))
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	tests := map[string]struct {
		value, date string
		want        time.Duration
	}{
		"absent":            {"", "", 0},
		"seconds":           {"7", "", 7 * time.Second},
		"spaces":            {" 7 ", "", 7 * time.Second},
		"fraction":          {"1.5", "", 1500 * time.Millisecond},
		"zero":              {"0", "", time.Second},
		"too long":          {"86400", "", 15 * time.Minute},
		"beyond all bounds": {"99999999999999999999999", "", 15 * time.Minute},
		"infinite":          {"inf", "", 15 * time.Minute},
		"not a number":      {"nan", "", 0},
		"negative":          {"-5", "", 0},
		"rubbish":           {"soon", "", 0},
		"date":              {at(30 * time.Second), "", 30 * time.Second},
		"date in the past":  {at(-time.Hour), "", time.Second},
		"date far ahead":    {at(24 * time.Hour), "", 15 * time.Minute},
		"date by the server's clock": {
			at(time.Hour + 30*time.Second), at(time.Hour), 30 * time.Second,
		},
		"date with an unreadable clock": {at(30 * time.Second), "noon", 30 * time.Second},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			h.Set("Retry-After", test.value)
			h.Set("Date", test.date)
			require.Equal(t, test.want, parseRetryAfter(h, now))
		})
	}

	stub := llmtest.Start(t, llmtest.Options{Rules: []llmtest.Rule{
		{Contains: "seconds", Behavior: llmtest.Behavior{Status: 429, RetryAfter: 7}},
		{Contains: "date", Behavior: llmtest.Behavior{Status: 503, RetryAfter: 600, RetryAfterDate: true}},
	}})
	c := open(t, Config{Endpoint: stub.Endpoint()})
	_, err := c.Complete(t.Context(), Request{Model: "m", Prompt: "seconds"})
	require.Equal(t, 7*time.Second, requireError(t, err).RetryAfter)
	_, err = c.Complete(t.Context(), Request{Model: "m", Prompt: "date"})
	e := requireError(t, err)
	require.Equal(t, ServerError, e.Kind)
	require.InDelta(t, 600, e.RetryAfter.Seconds(), 2, "the date has whole seconds")
}

// C11: a name is checked by what it resolves to, at the moment of dialling.
func TestNamesOfLinkLocalAddressesAreRefused(t *testing.T) {
	t.Parallel()
	stub := llmtest.Start(t)
	port := stub.URL[strings.LastIndex(stub.URL, ":"):]
	complete := func(t *testing.T, name string, addr [4]byte) error {
		t.Helper()
		c, err := newClient(Config{Endpoint: "http://" + name + port + "/v1/chat/completions"}, dialVia(resolveTo(t, addr), false))
		require.NoError(t, err)
		t.Cleanup(c.Close)
		_, err = ask(t.Context(), c)
		return err
	}
	for name, addr := range map[string][4]byte{
		"metadata.example": {169, 254, 169, 254},
		"cloud.example":    {100, 100, 100, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := complete(t, name, addr)
			require.Equal(t, &Error{Kind: Misconfigured, Code: "address_refused"}, requireError(t, err))
		})
	}
	t.Run("llm.example", func(t *testing.T) {
		t.Parallel()
		require.NoError(t, complete(t, "llm.example", [4]byte{127, 0, 0, 1}))
	})
	t.Run("allowed", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // the address must not be connected to, only not be refused
		_, err := dialVia(nil, true)(ctx, "tcp", "169.254.169.254:80")
		require.Error(t, err)
		require.NotErrorIs(t, err, errAddressRefused)
	})
}

// resolveTo is a resolver whose name server answers every question about IPv4
// with one address and every other with nothing.
func resolveTo(t *testing.T, addr [4]byte) *net.Resolver {
	t.Helper()
	server, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(dnsReply(buf[:n], addr), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// dnsReply answers the one question of a query (RFC 1035).
func dnsReply(query []byte, addr [4]byte) []byte {
	end := 12 // after the header: labels, their end, type and class
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	kind := binary.BigEndian.Uint16(query[end+1:])
	question := query[12 : end+5]
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
	if kind == 1 {
		reply[7] = 1
		reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		reply = append(reply, addr[:]...)
	}
	return reply
}

// Connections are kept for the next call, after answers and after errors.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	stub := llmtest.NewServer(llmtest.Options{})
	opened := make(chan net.Conn, 100)
	server := httptest.NewUnstartedServer(stub)
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened <- conn
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	c := open(t, Config{Endpoint: server.URL + "/v1/chat/completions"})
	const rounds = 10
	for range rounds {
		for _, prompt := range []string{"hello", "!fail 503", "!malformed html"} {
			_, _ = c.Complete(t.Context(), Request{Model: "m", Prompt: prompt})
		}
	}
	require.Equal(t, 3*rounds, stub.Stats().Calls)
	// Not exactly one: on a busy machine net/http gives up a connection whose
	// request it has not seen fully written 50 ms after the answer.
	require.Less(t, len(opened), rounds)
}
