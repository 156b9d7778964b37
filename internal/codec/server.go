package codec

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.temporal.io/sdk/converter"
)

// ServerConfig says who may have payloads decrypted, and where.
type ServerConfig struct {
	// Addr is host:port to listen on (CODEC_ADDR, default 127.0.0.1:8234).
	Addr string
	// Token is the secret a caller shows (CODEC_TOKEN).
	Token string
	// Origin is the one web origin whose pages may call (CODEC_ORIGIN), in the form
	// in which browsers send it.
	Origin string
}

// Format keeps the token out of everything that is printed.
func (c ServerConfig) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "codec server at %s for %s", c.Addr, c.Origin)
}

// Refusals, as NewServer reports them.
const (
	RefusedOrigin = "origin"
	RefusedToken  = "token"
)

const (
	// maxRequest is the largest body. The server refuses payloads above 2 MB, base64
	// makes 2.7 of it, and a page asks for few at a time.
	maxRequest = 16 << 20
	// maxAge is how long a browser may remember that it may call, in seconds.
	maxAge = "600"
	// allowedHeaders are what the Web UI sends: the last two with an access token.
	allowedHeaders = "content-type, x-namespace, authorization, authorization-extras"
)

// NewServer returns an HTTP server for the Temporal Web UI and the Temporal CLI,
// with limits on what a caller may send and on how long it may take. refused is
// told why a request was refused and which origin it named; it may be nil.
//
// It serves POST /decode and POST /encode, both also below a path of one element,
// and GET /healthz. The token is shown in one of two ways: as a bearer token, as
// the CLI does, or as that path element. The second is for the UI: it sends a
// bearer token only to https endpoints and only where people log in, and then
// their own. It encodes as well, because with a codec set it refuses to start a
// workflow or to send a signal in clear text.
func NewServer(c *Codec, cfg ServerConfig, refused func(reason, origin string)) *http.Server {
	s := &server{codec: converter.NewPayloadCodecHTTPHandler(c), cfg: cfg, token: sha256.Sum256([]byte(cfg.Token)), refused: refused}
	if s.refused == nil {
		s.refused = func(string, string) {}
	}
	mux := http.NewServeMux()
	for _, path := range []string{"/decode", "/encode", "/{token}/decode", "/{token}/encode"} {
		mux.HandleFunc("POST "+path, s.convert)
		mux.HandleFunc("OPTIONS "+path, s.preflight)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	return &http.Server{
		Addr:              cfg.Addr,
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

type server struct {
	codec   http.Handler
	cfg     ServerConfig
	token   [sha256.Size]byte
	refused func(reason, origin string)
}

// preflight answers a browser that asks whether a page may call.
func (s *server) preflight(w http.ResponseWriter, r *http.Request) {
	if !s.fromOrigin(w, r) {
		return
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", http.MethodPost)
	h.Set("Access-Control-Allow-Headers", allowedHeaders)
	h.Set("Access-Control-Max-Age", maxAge)
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) convert(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// Programs have no origin; they need no more than the token.
	if r.Header.Get("Origin") != "" && !s.fromOrigin(w, r) {
		return
	}
	if !s.authorized(r) {
		s.refused(RefusedToken, r.Header.Get("Origin"))
		h.Set("WWW-Authenticate", "Bearer")
		http.Error(w, "the token is missing or wrong: it is CODEC_TOKEN, as a bearer token or as the path before the last element", http.StatusUnauthorized)
		return
	}
	if r.ContentLength > maxRequest {
		http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	s.codec.ServeHTTP(w, r)
}

// fromOrigin lets the one origin read the response and refuses all others.
func (s *server) fromOrigin(w http.ResponseWriter, r *http.Request) bool {
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin != s.cfg.Origin {
		s.refused(RefusedOrigin, origin)
		http.Error(w, "this codec server answers to pages of "+s.cfg.Origin+" only (CODEC_ORIGIN)", http.StatusForbidden)
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	return true
}

// authorized compares in constant time. Hashes have one length, whatever was sent.
func (s *server) authorized(r *http.Request) bool {
	if s.cfg.Token == "" {
		return false
	}
	shown := r.PathValue("token")
	if shown == "" {
		scheme, credentials, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return false
		}
		shown = strings.TrimSpace(credentials)
	}
	sum := sha256.Sum256([]byte(shown))
	return subtle.ConstantTimeCompare(sum[:], s.token[:]) == 1
}
