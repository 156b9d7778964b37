// Package llm asks a language model one question over the network and says, in
// the executor's own words, what came of it. It exists because "the LLM failed"
// is not one thing: a refused connection heals by itself, a wrong API key needs
// a person, an oversized prompt concerns one job only, and an error page with
// status 200 must never reach a user as an answer. Everything that can go wrong
// between here and the model is sorted into one Kind per treatment (the table
// "LLM" of DESIGN.md section 4), once, in this package.
//
// It is the only importer of go-openai, whose defaults are unsafe for a service:
// no timeouts, no limit on what is read, redirects followed with the API key,
// and error texts that quote the response. None of that leaves this package: its
// errors hold a kind, a status and a short code, never any text of the prompt,
// the answer or the key.
package llm

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sashabaranov/go-openai"
)

// The values used where Config leaves a field at zero.
const (
	DefaultTimeout     = 5 * time.Minute
	DefaultMaxResponse = 4 << 20
)

// MaxAnswer is the largest answer accepted, in bytes of its JSON form with HTML
// escaping, which is how it travels through Temporal. DESIGN.md section 4 has
// the reason: above 2 MB the server refuses it in ways that retry for ever.
const MaxAnswer = 1 << 20

// Config says which model server to ask and how far to trust it.
type Config struct {
	// Endpoint is the full URL of an OpenAI-compatible chat endpoint
	// (LLM_ENDPOINT). It is used verbatim, query included, except that a path
	// ending in Ollama's own /api/chat becomes /v1/chat/completions, with a
	// warning. Plain http to a public name or address is refused, to others that
	// are not this machine it is warned about.
	Endpoint string
	// APIKey is sent as a bearer token (LLM_API_KEY); empty sends none.
	APIKey string
	// Timeout bounds one call from dialling to the last byte of the answer
	// (LLM_TIMEOUT); 0 means DefaultTimeout. Keep it below the activity's
	// StartToClose timeout, or the attempt ends before it can report.
	Timeout time.Duration
	// MaxResponse is the largest response read, in bytes after decompression;
	// 0 means DefaultMaxResponse. The answer in it is limited by MaxAnswer.
	MaxResponse int64
	// AllowLinkLocal permits link-local and cloud metadata addresses. They are
	// refused otherwise, because whoever can point the executor at one can read
	// the machine's credentials.
	AllowLinkLocal bool
	// AllowClearText permits plain http to public names and addresses, with a
	// warning (ALLOW_INSECURE).
	AllowClearText bool
}

// String describes the configuration without the API key.
func (c Config) String() string {
	endpoint := "invalid endpoint"
	if u, _, err := resolveEndpoint(c); err == nil {
		endpoint = redact(u)
	}
	return "llm at " + endpoint
}

// GoString is String, so that %#v does not show the API key either.
func (c Config) GoString() string { return c.String() }

// LogValue keeps the API key out of logs.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Validate reports what New would refuse, without the rest of New's work.
func (c Config) Validate() error {
	_, _, err := resolveEndpoint(c)
	return errors.Join(err, checkKey(c.APIKey))
}

func (c Config) withDefaults() Config {
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.MaxResponse <= 0 {
		c.MaxResponse = DefaultMaxResponse
	}
	return c
}

// Client asks one endpoint. It is safe for any number of concurrent calls.
type Client struct {
	endpoint *url.URL
	http     *http.Client
	api      openai.ClientConfig
	cfg      Config
	warnings []string
}

// New checks the configuration and returns a client. It does no I/O. The error
// joins one *ConfigError per mistake, each naming its setting.
func New(cfg Config) (*Client, error) { return newClient(cfg, newDialer(cfg.AllowLinkLocal)) }

func newClient(cfg Config, dial dialFunc) (*Client, error) {
	cfg = cfg.withDefaults()
	endpoint, warnings, err := resolveEndpoint(cfg)
	if err := errors.Join(err, checkKey(cfg.APIKey)); err != nil {
		return nil, err
	}
	return &Client{
		endpoint: endpoint,
		http:     newHTTPClient(dial),
		api:      openai.DefaultConfig(cfg.APIKey),
		cfg:      cfg,
		warnings: warnings,
	}, nil
}

// Close drops idle connections. Calls under way are not touched.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Endpoint is the URL in use without credentials and query, fit for logs.
func (c *Client) Endpoint() string { return redact(c.endpoint) }

// EndpointKey names the endpoint in 16 hex digits, the same in every process
// that uses it. Cool-downs after rate limits are shared under this key.
func (c *Client) EndpointKey() string { return endpointKey(c.endpoint) }

// Warnings says what is accepted but should be known at start, such as a
// rewritten path or clear text on the network.
func (c *Client) Warnings() []string { return slices.Clone(c.warnings) }

// Request is one question.
type Request struct {
	Model  string
	Prompt string // sent as a single user message
	// MaxTokens limits the answer; 0 leaves it to the server. Reasoning models
	// get it as max_completion_tokens, which for them includes the reasoning.
	MaxTokens int
}

// Answer is what the model said.
type Answer struct {
	// Text is valid UTF-8 without NUL; replaced bytes appear as U+FFFD. It is
	// empty only when Truncated, where the model spent its tokens on reasoning.
	Text string
	// Model is the name the server gives itself, or the one asked for.
	Model string
	// FinishReason is the server's word, or "unknown" if that is no short word.
	FinishReason string
	// PromptTokens and CompletionTokens are 0 where the server does not say.
	PromptTokens, CompletionTokens int64
	// Truncated says that the model stopped at its token limit.
	Truncated bool
}

// Complete asks once and never retries. Its error is always an *Error. It
// returns within Config.Timeout, earlier if ctx ends: a cancelled ctx gives
// Canceled, any passed deadline Timeout.
func (c *Client) Complete(ctx context.Context, r Request) (Answer, error) {
	callCtx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()

	// A client per call costs a few words of memory and gives each call its
	// own exchange, so that nothing about one response can reach another call.
	x := &exchange{client: c, prompt: r.Prompt}
	api := c.api
	api.HTTPClient = x
	resp, err := openai.NewClientWithConfig(api).CreateChatCompletion(callCtx, chatRequest(r))

	if err != nil && !x.decodedInPart(err) {
		return Answer{}, x.failure(ctx, callCtx, err)
	}
	return x.answer(r.Model, resp)
}

// chatRequest builds the request. go-openai refuses max_tokens for the models
// it takes for reasoning models, by their names and before sending anything; for
// those the limit goes into the newer field.
func chatRequest(r Request) openai.ChatCompletionRequest {
	limit := max(r.MaxTokens, 0)
	req := openai.ChatCompletionRequest{
		Model:     r.Model,
		Messages:  []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: r.Prompt}},
		MaxTokens: limit, //nolint:staticcheck // deprecated by OpenAI, but the only limit most other servers know
	}
	err := openai.NewReasoningValidator().Validate(req)
	if errors.Is(err, openai.ErrReasoningModelMaxTokensDeprecated) {
		req.MaxTokens = 0 //nolint:staticcheck // as above
		req.MaxCompletionTokens = limit
	}
	return req
}

func checkKey(key string) error {
	if strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return &ConfigError{Setting: "LLM_API_KEY", Reason: "contains a line break or another control character"}
	}
	return nil
}
