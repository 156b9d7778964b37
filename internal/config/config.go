// Package config turns the environment into the settings of every other
// package. It is the only reader of the environment, so that there is one place
// that knows all variables, their defaults and what they rule out together, and
// one report of everything that is wrong with them: a person who starts the
// program corrects a list, not one mistake after the other.
//
// It checks what can be known without a connection. Whether a server answers is
// found out at start, not here.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/nodpt/executor/internal/codec"
)

// Config is the environment, checked. Fields have the meaning given in
// Variables under the name of their tag. It prints without secrets.
type Config struct {
	RedisConnection string `env:"REDIS_CONNECTION" envDefault:"localhost:6379" json:"-"`
	RedisURL        string `env:"REDIS_URL" json:"-"`
	RedisCAFile     string `env:"REDIS_CA_FILE"`

	MaxManager   int `env:"MAX_MANAGER" envDefault:"0"`
	MaxInspector int `env:"MAX_INSPECTOR" envDefault:"0"`
	MaxAgent     int `env:"MAX_AGENT" envDefault:"0"`
	MaxChat      int `env:"MAX_CHAT" envDefault:"0"`
	MaxTotal     int `env:"MAX_TOTAL" envDefault:"0"`

	LLMEndpoint  string        `env:"LLM_ENDPOINT" envDefault:"http://localhost:11434/v1/chat/completions" json:"-"`
	LLMAPIKey    string        `env:"LLM_API_KEY" json:"-"`
	OpenAIAPIKey string        `env:"OPENAI_API_KEY" json:"-"`
	LLMTimeout   time.Duration `env:"LLM_TIMEOUT" envDefault:"5m"`

	ModelManager       string `env:"MODEL_MANAGER" envDefault:"trt-llm-manager"`
	ModelInspector     string `env:"MODEL_INSPECTOR" envDefault:"trt-llm-inspector"`
	ModelAgent         string `env:"MODEL_AGENT" envDefault:"trt-llm-agent"`
	ModelChat          string `env:"MODEL_CHAT"`
	DefaultModel       string `env:"DEFAULT_MODEL" envDefault:"trt-llm-agent"`
	MaxTokensManager   int    `env:"MAX_TOKENS_MANAGER" envDefault:"256"`
	MaxTokensInspector int    `env:"MAX_TOKENS_INSPECTOR" envDefault:"512"`
	MaxTokensAgent     int    `env:"MAX_TOKENS_AGENT" envDefault:"128"`
	MaxTokensChat      int    `env:"MAX_TOKENS_CHAT" envDefault:"64"`

	ChatList   string   `env:"CHAT_LIST" envDefault:"chat.jobs"`
	ChatModels []string `env:"CHAT_MODELS" envDefault:"*"`

	DatabaseURL string `env:"DATABASE_URL" envDefault:"sqlite://executor.db" json:"-"`
	DBHost      string `env:"DB_HOST"`
	DBPort      int    `env:"DB_PORT" envDefault:"3306"`
	DBName      string `env:"DB_NAME"`
	DBUser      string `env:"DB_USER"`
	DBPassword  string `env:"DB_PASSWORD" json:"-"`

	TemporalUIURL string `env:"TEMPORAL_UI_URL" envDefault:"http://127.0.0.1:8233"`
	AllowInsecure bool   `env:"ALLOW_INSECURE" envDefault:"0"`

	EncryptionKeys string `env:"ENCRYPTION_KEYS" json:"-"`
	CodecAddr      string `env:"CODEC_ADDR" envDefault:"127.0.0.1:8234"`
	CodecToken     string `env:"CODEC_TOKEN" json:"-"`
	CodecOrigin    string `env:"CODEC_ORIGIN"`

	HTTPAddr string `env:"HTTP_ADDR" envDefault:"127.0.0.1:9090"`

	ConsumerGroup     string        `env:"CONSUMER_GROUP" envDefault:"executor-group"`
	ConsumerName      string        `env:"CONSUMER_NAME"`
	ClaimMinIdle      time.Duration `env:"CLAIM_MIN_IDLE" envDefault:"60s"`
	BridgeMaxInFlight int           `env:"BRIDGE_MAX_IN_FLIGHT" envDefault:"1000"`

	RetryFor     time.Duration `env:"RETRY_FOR" envDefault:"24h"`
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"60s"`
	StopGrace    time.Duration `env:"STOP_GRACE"`

	LogLevel  string `env:"LOG_LEVEL" envDefault:"info"`
	LogFormat string `env:"LOG_FORMAT" envDefault:"json"`

	environ  map[string]string // as given, without empty variables, with secrets read from files
	sources  map[string]Source
	warnings []string
	keys     []codec.Key // of EncryptionKeys
}

// Source says where a setting came from.
type Source string

// The sources of a setting.
const (
	SourceDefault Source = "default"
	SourceEnv     Source = "env"
	SourceFile    Source = "file" // a variable <NAME>_FILE named it
)

// Environ is the environment of the process as Load takes it.
func Environ() map[string]string {
	environ := make(map[string]string)
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		environ[name] = value
	}
	return environ
}

// Load reads the settings from the variables given. An empty variable counts as
// unset, but for CHAT_LIST, where it switches the list off. The error is always
// *Errors and holds every mistake; the Config returned with it is good for
// Redacted only.
func Load(environ map[string]string) (Config, error) {
	l := loader{errs: &Errors{}}
	environ, sources := l.readEnviron(environ)
	c := Config{environ: environ, sources: sources}
	l.parse(&c)
	l.check(&c)
	if len(l.errs.Mistakes) > 0 {
		return c, l.errs
	}
	return c, nil
}

// Mistake is one thing that is wrong with the environment.
type Mistake struct {
	Variable string // its name
	Problem  string // what is wrong and what is allowed; never repeats the value
}

// Errors are all mistakes of an environment.
type Errors struct{ Mistakes []Mistake }

// Error lists the mistakes, one per line.
func (e *Errors) Error() string {
	var b strings.Builder
	b.WriteString("the configuration is not usable:")
	for _, m := range e.Mistakes {
		b.WriteString("\n  " + m.Variable + ": " + m.Problem)
	}
	return b.String()
}

// Format prints the settings as Redacted gives them, whatever the verb, so that
// no %+v of a struct that holds a Config can show a secret.
func (c Config) Format(f fmt.State, _ rune) {
	for i, s := range c.Redacted() {
		if i > 0 {
			_, _ = f.Write([]byte(" "))
		}
		_, _ = fmt.Fprintf(f, "%s=%q", s.Name, s.Value)
	}
}

// LogValue keeps the settings out of logs; the start log names what matters.
func (c Config) LogValue() slog.Value { return slog.StringValue("[configuration]") }

// Warnings are what the start log should say: settings that are allowed and
// have consequences one may not expect.
func (c Config) Warnings() []string { return append([]string(nil), c.warnings...) }

// loader collects mistakes while a Config is made.
type loader struct{ errs *Errors }

func (l *loader) mistake(variable, format string, args ...any) {
	l.errs.Mistakes = append(l.errs.Mistakes, Mistake{Variable: variable, Problem: fmt.Sprintf(format, args...)})
}

// wrong reports whether a mistake of the variable is known already, so that what
// follows from it is not reported as well.
func (l *loader) wrong(variable string) bool {
	for _, m := range l.errs.Mistakes {
		if m.Variable == variable {
			return true
		}
	}
	return false
}

// readEnviron drops empty variables and reads the secrets that are in files.
func (l *loader) readEnviron(given map[string]string) (map[string]string, map[string]Source) {
	environ := make(map[string]string, len(given))
	sources := make(map[string]Source)
	secrets := make(map[string]bool)
	for _, v := range Variables() {
		if v.File {
			secrets[v.Name] = true
		}
	}
	for name, value := range given {
		if !secrets[name] {
			value = strings.TrimSpace(value)
		}
		if value != "" {
			environ[name] = value
			sources[name] = SourceEnv
		}
	}
	if value, ok := given["CHAT_LIST"]; ok && strings.TrimSpace(value) == "" {
		sources["CHAT_LIST"] = SourceEnv
	}
	for _, v := range Variables() { // in their order, so that mistakes have one
		path := environ[v.Name+"_FILE"]
		if !v.File || path == "" {
			continue
		}
		if _, both := environ[v.Name]; both {
			l.mistake(v.Name+"_FILE", "set either this or %s, not both", v.Name)
			continue
		}
		value, err := readSecret(path)
		if err != nil {
			l.mistake(v.Name+"_FILE", "%v", err)
			continue
		}
		environ[v.Name] = value
		sources[v.Name] = SourceFile
	}
	return environ, sources
}

// maxSecret is far above any key or address, and keeps a mistyped path from
// being read into memory.
const maxSecret = 64 << 10

// readSecret reads a file that holds one secret, without the line break at its
// end. Errors do not repeat its content.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot read the file: %w", withoutPath(err))
	case !info.Mode().IsRegular() && info.Mode()&os.ModeNamedPipe == 0:
		return "", errors.New("must name a file")
	case info.Size() > maxSecret:
		return "", fmt.Errorf("the file is larger than %d bytes", maxSecret)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("cannot read the file: %w", withoutPath(err))
	}
	value := strings.TrimRight(string(content), "\r\n")
	if strings.TrimSpace(value) == "" {
		return "", errors.New("the file is empty")
	}
	return value, nil
}

// withoutPath drops the path from an error of the os package: it may be a secret
// that was put into the wrong variable.
func withoutPath(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

// parse fills the fields. Values of the wrong form are reported and left zero.
func (l *loader) parse(c *Config) {
	names := make(map[string]string) // field → variable
	for field := range reflect.TypeFor[Config]().Fields() {
		names[field.Name] = field.Tag.Get("env")
	}
	err := env.ParseWithOptions(c, env.Options{Environment: maps.Clone(c.environ)})
	if err == nil {
		return
	}
	all, ok := errors.AsType[env.AggregateError](err)
	if !ok {
		l.mistake("environment", "cannot be read: %T", err)
		return
	}
	for _, err := range all.Errors {
		p, ok := errors.AsType[env.ParseError](err)
		if !ok {
			l.mistake("environment", "cannot be read: %T", err)
			continue
		}
		problem := "must be a whole number"
		switch p.Type {
		case reflect.TypeFor[time.Duration]():
			problem = "must be a duration such as 30s, 5m or 24h"
		case reflect.TypeFor[bool]():
			problem = "must be 1, true, 0 or false"
		}
		l.mistake(names[p.Name], "%s", problem)
	}
}

// check applies all rules that the types do not express, and collects warnings.
func (l *loader) check(c *Config) {
	l.checkNumbers(c)
	l.checkDurations(c)
	l.checkNames(c)
	l.checkRedis(c)
	l.checkLLM(c)
	l.checkDatabase(c)
	l.checkTemporal(c)
	l.checkAddresses(c)
	l.checkEncryption(c)
	c.warn(limitWarning(*c))
}

func (c *Config) warn(text string) {
	if text != "" {
		c.warnings = append(c.warnings, text)
	}
}

func (c *Config) isSet(variable string) bool {
	_, ok := c.sources[variable]
	return ok
}

func (l *loader) number(variable string, value, low, high int) {
	if (value < low || value > high) && !l.wrong(variable) {
		l.mistake(variable, "must be a whole number from %d to %d", low, high)
	}
}

func (l *loader) duration(variable string, value, low, high time.Duration) {
	if (value < low || value > high) && !l.wrong(variable) {
		l.mistake(variable, "must be a duration from %s to %s", short(low), short(high))
	}
}

func (l *loader) checkNumbers(c *Config) {
	const maxJobs, maxTokens = 100_000, 10_000_000
	for _, r := range c.perRole() {
		l.number(r.variable("MAX_"), r.max, 0, maxJobs)
		l.number(r.variable("MAX_TOKENS_"), r.maxTokens, 1, maxTokens)
	}
	l.number("MAX_TOTAL", c.MaxTotal, 0, maxJobs)
	l.number("BRIDGE_MAX_IN_FLIGHT", c.BridgeMaxInFlight, 1, maxJobs)
	l.number("DB_PORT", c.DBPort, 1, 65535)
}

// stopMargin is what a stop needs beside DRAIN_TIMEOUT at most: the bridge (5 s),
// the role workers after their drain (1 s), the workflows worker (5 s), the last
// reports (1 s), the permits of MAX_TOTAL (4 s), the connections.
const stopMargin = 20 * time.Second

func (l *loader) checkDurations(c *Config) {
	// An attempt may take 25 h (StartToClose), and must be able to report.
	l.duration("LLM_TIMEOUT", c.LLMTimeout, time.Second, 24*time.Hour)
	l.duration("CLAIM_MIN_IDLE", c.ClaimMinIdle, time.Second, 24*time.Hour)
	l.duration("RETRY_FOR", c.RetryFor, time.Second, 365*24*time.Hour)
	l.duration("DRAIN_TIMEOUT", c.DrainTimeout, 0, 24*time.Hour)
	if c.isSet("STOP_GRACE") && !l.wrong("STOP_GRACE") && !l.wrong("DRAIN_TIMEOUT") && c.StopGrace <= c.StopTimeout() {
		l.mistake("STOP_GRACE", "must be longer than DRAIN_TIMEOUT + %s = %s, or the process is killed while it still stops",
			short(stopMargin), short(c.StopTimeout()))
	}
	if !l.wrong("RETRY_FOR") && !l.wrong("LLM_TIMEOUT") && c.RetryFor < c.LLMTimeout {
		c.warn("RETRY_FOR is shorter than LLM_TIMEOUT: a job whose call times out is tried only once more")
	}
}

func (l *loader) checkNames(c *Config) {
	if c.isSet("CHAT_LIST") && c.environ["CHAT_LIST"] == "" {
		c.ChatList = ""
	}
	if c.ConsumerName == "" {
		c.ConsumerName = uniqueName()
	}
	l.name("CONSUMER_GROUP", c.ConsumerGroup)
	l.name("CONSUMER_NAME", c.ConsumerName)
	for _, r := range c.perRole() {
		if r.model != "" || !r.optionalModel() {
			l.name(r.variable("MODEL_"), r.model)
		}
	}
	l.name("DEFAULT_MODEL", c.DefaultModel)
	models := c.ChatModels[:0:0]
	for _, model := range c.ChatModels {
		if model = strings.TrimSpace(model); model != "" {
			models = append(models, model)
		}
	}
	c.ChatModels = models

	c.LogLevel, c.LogFormat = strings.ToLower(c.LogLevel), strings.ToLower(c.LogFormat)
	l.oneOf("LOG_LEVEL", c.LogLevel, "debug", "info", "warn", "error")
	l.oneOf("LOG_FORMAT", c.LogFormat, "json", "text")
}

func (l *loader) checkAddresses(c *Config) {
	if !hostPort(c.HTTPAddr, true) {
		l.mistake("HTTP_ADDR", "must be host:port, for example 127.0.0.1:9090 or :9090")
	}
	if originOf(c.TemporalUIURL) == "" {
		l.mistake("TEMPORAL_UI_URL", "must be a URL that begins with http:// or https://")
	}
	c.TemporalUIURL = strings.TrimRight(c.TemporalUIURL, "/")
}

// limitWarning reminds of what has changed for those who never set a limit: the
// old executor ran one job at a time whatever MAX_* said.
func limitWarning(c Config) string {
	var unlimited []string
	for _, r := range c.perRole() {
		if r.max == 0 {
			unlimited = append(unlimited, r.variable("MAX_"))
		}
	}
	if len(unlimited) == 0 || c.MaxTotal > 0 {
		return ""
	}
	return fmt.Sprintf("%s = 0 means unlimited: up to %d jobs of a role call the LLM at once; the old executor in effect ran one at a time",
		strings.Join(unlimited, ", "), c.BridgeMaxInFlight)
}

// short writes a duration without zero units: 5m, not 5m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
