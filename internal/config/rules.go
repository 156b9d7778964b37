package config

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/reach"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
)

// name checks what becomes a name in Redis, a label or part of a request.
func (l *loader) name(variable, value string) {
	const maxName = 200
	bad := func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }
	if value == "" || len(value) > maxName || strings.ContainsFunc(value, bad) {
		l.mistake(variable, "must be 1 to %d printable characters", maxName)
	}
}

func (l *loader) oneOf(variable, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		l.mistake(variable, "must be one of %s", strings.Join(allowed, ", "))
	}
}

// certificates checks a PEM file of certificates.
func (l *loader) certificates(variable, path string) {
	content, err := os.ReadFile(path)
	if err != nil {
		l.mistake(variable, "cannot read the file: %v", withoutPath(err))
		return
	}
	if !x509.NewCertPool().AppendCertsFromPEM(content) {
		l.mistake(variable, "the file holds no PEM certificate")
	}
}

func (l *loader) checkRedis(c *Config) {
	variable, value := c.redis()
	conn, err := stream.ParseConnection(value)
	if err != nil {
		l.mistake(variable, "%s", strings.TrimPrefix(err.Error(), "REDIS_CONNECTION: "))
		return
	}
	for _, w := range conn.Warnings {
		c.warn(variable + ": " + w)
	}
	if c.RedisCAFile != "" {
		l.certificates("REDIS_CA_FILE", c.RedisCAFile)
		if !conn.TLS {
			c.warn("REDIS_CA_FILE has no effect: " + variable + " does not use TLS (rediss:// or ssl=true)")
		}
	}
	if host, _, err := net.SplitHostPort(conn.Addr); err == nil && !conn.TLS {
		l.clearText(c, variable, host, "is reached without TLS, so jobs, answers and the password", "use rediss:// or ssl=true")
	}
}

// clearText judges a server that is reached without TLS: a warning on a private
// network, a mistake on the internet unless ALLOW_INSECURE allows it.
func (l *loader) clearText(c *Config, variable, host, what, remedy string) {
	what += " cross the network in clear text: " + remedy
	switch where := reach.Of(host); {
	case where == reach.Host:
	case where == reach.Private || c.AllowInsecure:
		c.warn(variable + " " + what)
	default:
		l.mistake(variable, "%s, or set ALLOW_INSECURE=1 if the network in between is safe", what)
	}
}

// redis is the connection string in force and the variable it came from.
func (c *Config) redis() (variable, value string) {
	if c.RedisURL != "" {
		return "REDIS_URL", c.RedisURL
	}
	return "REDIS_CONNECTION", c.RedisConnection
}

func (l *loader) checkLLM(c *Config) {
	if c.LLMAPIKey != "" && c.OpenAIAPIKey != "" && c.LLMAPIKey != c.OpenAIAPIKey {
		c.warn("LLM_API_KEY is used; OPENAI_API_KEY is set to something else and is ignored")
	}
	if l.wrong("LLM_TIMEOUT") {
		c.LLMTimeout = 0 // the package's default, to check the rest
	}
	client, err := llm.New(c.LLM())
	if err != nil {
		variable, problem := "LLM_ENDPOINT", "is not usable"
		if e, ok := errors.AsType[*llm.ConfigError](err); ok {
			variable, problem = e.Setting, e.Reason
		}
		l.mistake(variable, "%s", problem)
		return
	}
	defer client.Close()
	for _, w := range client.Warnings() {
		c.warn(w)
	}
}

func (l *loader) checkDatabase(c *Config) {
	parts := []string{"DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD"}
	given := slices.ContainsFunc(parts, c.isSet)
	if c.isSet("DATABASE_URL") {
		if given {
			c.warn("DATABASE_URL is used; the DB_ variables are ignored")
		}
		l.databaseURL(c, "DATABASE_URL", c.DatabaseURL)
		return
	}
	if !given {
		return
	}
	complete := true
	for _, part := range []string{"DB_HOST", "DB_NAME", "DB_USER"} {
		if !c.isSet(part) {
			l.mistake(part, "must be set, because other DB_ variables are (they describe a MySQL database; DATABASE_URL replaces them)")
			complete = false
		}
	}
	if complete {
		c.DatabaseURL = mysqlURL(*c)
		l.databaseURL(c, "DB_HOST", c.DatabaseURL)
	}
}

// mysqlURL builds the URL of a MySQL database from its parts.
func mysqlURL(c Config) string {
	host := strings.Trim(c.DBHost, "[]")
	u := url.URL{
		Scheme: "mysql",
		User:   url.User(c.DBUser),
		Host:   net.JoinHostPort(host, strconv.Itoa(c.DBPort)),
		Path:   "/" + c.DBName,
	}
	if c.DBPassword != "" {
		u.User = url.UserPassword(c.DBUser, c.DBPassword)
	}
	return u.String()
}

func (l *loader) databaseURL(c *Config, variable, value string) {
	links, err := store.Links(store.Config{URL: value})
	if wrong, ok := errors.AsType[*store.Error](err); ok {
		l.mistake(variable, "%s", wrong.Reason)
		return
	}
	remedy := "put sslmode=verify-full (Postgres) or tls=true (MySQL) into "
	if variable == "DATABASE_URL" {
		remedy += "it"
	} else {
		remedy += "DATABASE_URL instead"
	}
	for _, link := range links {
		switch {
		case l.wrong(variable):
		case !link.Encrypted:
			l.clearText(c, variable, link.Host, "may be reached without TLS, so jobs, answers and the password could", remedy)
		case !link.Verified && reach.Of(link.Host) != reach.Host:
			c.warn(variable + " does not check the server's certificate, so whoever is in between can read jobs and answers: " + remedy)
		}
	}
}

// hostPort reports whether s is host:port with a port in range. An empty host is
// allowed for addresses to listen on, as is port 0.
func hostPort(s string, listen bool) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" && !listen || strings.ContainsAny(host, "/ @") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && (n > 0 || listen)
}

// uniqueName names this process as a consumer: readable, and never that of
// another process, because two consumers of one name would take each other's
// entries.
func uniqueName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "executor"
	}
	host = strings.Map(func(r rune) rune {
		if r > ' ' && r < unicode.MaxASCII {
			return r
		}
		return '-'
	}, host)
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails
	return fmt.Sprintf("%.64s-%d-%x", host, os.Getpid(), random)
}
