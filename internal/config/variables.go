package config

import (
	"cmp"
	"fmt"
	"reflect"
	"strings"

	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
)

// Variable describes one environment variable for people.
type Variable struct {
	Group   string // heading it belongs under
	Name    string
	Default string // empty: none
	Meaning string // one line of Markdown
	Secret  bool   // its value is never printed as it is
	File    bool   // <NAME>_FILE may name a file that holds the value
}

// Variables returns every variable the program reads, in the order in which they
// are documented. Defaults are those of the code.
func Variables() []Variable {
	defaults := make(map[string]string)
	for field := range reflect.TypeFor[Config]().Fields() {
		if name := field.Tag.Get("env"); name != "" {
			defaults[name] = field.Tag.Get("envDefault")
		}
	}
	defaults["TEMPORAL_ADDRESS"] = defaultTemporalAddress
	defaults["TEMPORAL_NAMESPACE"] = defaultTemporalNamespace

	const secret, file, both = 1, 2, 3
	var all []Variable
	group := ""
	add := func(name, meaning string, kind ...int) {
		v := Variable{Group: group, Name: name, Default: defaults[name], Meaning: meaning}
		for _, k := range kind {
			v.Secret, v.File = v.Secret || k&secret != 0, v.File || k&file != 0
		}
		all = append(all, v)
	}

	// The first of the roles is explained, the others refer to it.
	perRole := func(prefix, meaning string) {
		for i, r := range job.Roles() {
			if i > 0 {
				meaning = "same for %s jobs"
			}
			add(variableOf(prefix, r), fmt.Sprintf(meaning, r))
		}
	}

	group = "Redis"
	add("REDIS_CONNECTION", "`host:port`, a `redis://` or `rediss://` URL, or StackExchange.Redis syntax (`host:port,password=…,ssl=true`)", both)
	add("REDIS_URL", "same forms; wins over `REDIS_CONNECTION`", both)
	add("REDIS_CA_FILE", "PEM file of the certificate authorities to trust instead of the system's")
	add("CONSUMER_GROUP", "consumer group shared by all executors")
	add("CONSUMER_NAME", "name of this process in the group; must be unique, and is made up from host and process if unset")
	add("CLAIM_MIN_IDLE", "idle time after which another consumer's entry is taken over; consumers that died are noticed within seconds anyway")
	add("BRIDGE_MAX_IN_FLIGHT", "jobs of one stream in flight before reading pauses")
	add("CHAT_LIST", "legacy Redis list of chat jobs; set but empty: off")

	group = "Limits"
	perRole("MAX_", "%s jobs at once per worker process; 0 = unlimited (`BRIDGE_MAX_IN_FLIGHT`)")
	add("MAX_TOTAL", "jobs at once over all roles and all processes; 0 = unlimited")

	group = "LLM"
	add("LLM_ENDPOINT", "full URL of an OpenAI-compatible chat endpoint, used as it is")
	add("LLM_API_KEY", "bearer token", both)
	add("OPENAI_API_KEY", "used when `LLM_API_KEY` is unset", both)
	add("LLM_TIMEOUT", "one call, 1s to 24h")
	for _, r := range job.Roles() {
		meaning := fmt.Sprintf("model of %s jobs", r)
		if r == job.Chat {
			meaning += " that name neither a model nor a node level; unset: `DEFAULT_MODEL`"
		}
		add(variableOf("MODEL_", r), meaning)
	}
	add("DEFAULT_MODEL", "model where nothing else names one")
	add("CHAT_MODELS", "models that chat entries may name, separated by commas; `*` = any")
	perRole("MAX_TOKENS_", "longest answer of a %s job, in tokens")
	add("RETRY_FOR", "how long a job is retried, counted from its first failure, before it fails for good")

	group = "Results"
	add("DATABASE_URL", "`sqlite://path`, `postgres://…` or `mysql://…` (MariaDB too)", both)
	add("DB_HOST", "with `DB_NAME` and `DB_USER`: a MySQL database, if `DATABASE_URL` is unset")
	add("DB_PORT", "its port")
	add("DB_NAME", "its name")
	add("DB_USER", "its user")
	add("DB_PASSWORD", "the user's password", both)

	group = "Temporal"
	add("TEMPORAL_ADDRESS", "`host:port` of the Temporal server; without TLS only on this machine or a private network")
	add("TEMPORAL_NAMESPACE", "namespace")
	add("TEMPORAL_API_KEY", "API key; switches TLS on; from a file it is read again when it changes", both)
	add("TEMPORAL_TLS", "`true` or `false`")
	add("TEMPORAL_TLS_CLIENT_CERT_PATH", "PEM file of the client certificate, read again at each connection")
	add("TEMPORAL_TLS_CLIENT_KEY_PATH", "PEM file of its key")
	add("TEMPORAL_TLS_CLIENT_CERT_DATA", "the client certificate itself")
	add("TEMPORAL_TLS_CLIENT_KEY_DATA", "its key itself", secret)
	add("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "PEM file of the certificate authorities to trust")
	add("TEMPORAL_TLS_SERVER_CA_CERT_DATA", "the certificate authorities themselves")
	add("TEMPORAL_TLS_SERVER_NAME", "name expected in the server's certificate")
	add("TEMPORAL_TLS_DISABLE_HOST_VERIFICATION", "`true` accepts any certificate; for tests")
	add("TEMPORAL_CLIENT_AUTHORITY", "`:authority` header, for proxies")
	add("TEMPORAL_CONFIG_FILE", "Temporal's own client configuration (TOML); variables win over it")
	add("TEMPORAL_PROFILE", "profile of that file")
	add("TEMPORAL_UI_URL", "Temporal's Web UI, for links")
	add("ALLOW_INSECURE", "`1` allows public addresses of Temporal, Redis, the database and the LLM without TLS, with a warning")

	group = "Encryption"
	add("ENCRYPTION_KEYS", "keys that encrypt task, payload, answer and error texts in Temporal: `id:base64` of 32 bytes each, separated by commas or line breaks; the first encrypts, all decrypt; unset: clear text", both)
	add("CODEC_ADDR", "where `executor codec-server` decrypts them for the Web UI")
	add("CODEC_TOKEN", "what it wants to be shown; 20 to 200 letters, digits, `-`, `.`, `_`, `~`", both)
	add("CODEC_ORIGIN", "the one origin it answers to; unset: that of `TEMPORAL_UI_URL`")

	group = "Process"
	add("HTTP_ADDR", "address of `/metrics`, `/healthz` and `/readyz`; if it is busy, a warning, or an error if it was set")
	add("DRAIN_TIMEOUT", "how long running calls may finish after SIGTERM; the process stops within 20s more")
	add("STOP_GRACE", "the container's grace period, if any; checked to be longer than that")
	add("LOG_LEVEL", "`debug`, `info`, `warn` or `error`")
	add("LOG_FORMAT", "`json` or `text`")
	return all
}

// MarkdownTable is the table of the README between its config markers.
func MarkdownTable() string {
	var b strings.Builder
	b.WriteString("| Variable | Default | Meaning |\n|---|---|---|\n")
	group := ""
	for _, v := range Variables() {
		if v.Group != group {
			group = v.Group
			fmt.Fprintf(&b, "| **%s** | | |\n", group)
		}
		def := ""
		if v.Default != "" {
			def = "`" + v.Default + "`"
		}
		name := "`" + v.Name + "`"
		if v.File {
			name += " †"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, def, v.Meaning)
	}
	b.WriteString("\nEmpty means unset. † also as `<NAME>_FILE`, which names a file that holds the value.\n")
	return b.String()
}

// EnvExample is the content of .env.example: every variable, commented out, with
// its default.
func EnvExample() string {
	var b strings.Builder
	b.WriteString("# Settings of the executor. Every line shows a default: remove the # to change it.\n" +
		"# Variables marked [file] may be given as <NAME>_FILE as well, naming a file that\n" +
		"# holds the value. Empty means unset.\n")
	group := ""
	for _, v := range Variables() {
		if v.Group != group {
			group = v.Group
			fmt.Fprintf(&b, "\n# --- %s ---\n", group)
		}
		mark := ""
		if v.File {
			mark = " [file]"
		}
		fmt.Fprintf(&b, "# %s%s\n#%s=%s\n", strings.ReplaceAll(v.Meaning, "`", ""), mark, v.Name, v.Default)
	}
	return b.String()
}

// Setting is one variable as it is in force, fit to be shown.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"` // without secrets
	Source Source `json:"source"`
}

// redacted stands for a secret.
const redacted = "[redacted]"

// Redacted returns all settings in force, for the config command. Secrets are
// [redacted]; addresses lose their credentials only.
func (c Config) Redacted() []Setting {
	var settings []Setting
	for _, v := range Variables() {
		s := Setting{Name: v.Name, Value: v.Default, Source: SourceDefault}
		if source, ok := c.sources[v.Name]; ok {
			s.Value, s.Source = c.environ[v.Name], source
		}
		switch v.Name {
		case "DATABASE_URL": // may be built from the DB_ variables
			s.Value = cmp.Or(c.DatabaseURL, s.Value)
		case "CONSUMER_NAME":
			s.Value = cmp.Or(c.ConsumerName, s.Value)
		case "CODEC_ORIGIN":
			s.Value = cmp.Or(c.CodecOrigin, s.Value)
		}
		s.Value = redact(v, s.Value)
		settings = append(settings, s)
	}
	return settings
}

// redact takes the secrets out of a value.
func redact(v Variable, value string) string {
	if value == "" {
		return ""
	}
	switch v.Name {
	case "REDIS_CONNECTION", "REDIS_URL":
		if conn, err := stream.ParseConnection(value); err == nil {
			return conn.String()
		}
		return redacted
	case "DATABASE_URL":
		return store.Redact(value)
	case "ENCRYPTION_KEYS":
		keys, err := codec.ParseKeys(value)
		if err != nil {
			return redacted
		}
		ids := make([]string, len(keys))
		for i, key := range keys {
			ids[i] = fmt.Sprint(key)
		}
		return strings.Join(ids, ",")
	case "LLM_ENDPOINT":
		if client, err := llm.New(llm.Config{Endpoint: value, AllowClearText: true}); err == nil {
			defer client.Close()
			return client.Endpoint()
		}
		return redacted
	}
	if v.Secret {
		return redacted
	}
	return value
}
