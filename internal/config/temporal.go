package config

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
)

// The values Temporal's own tools use as well.
const (
	defaultTemporalAddress   = "localhost:7233"
	defaultTemporalNamespace = "default"
)

// Temporal returns the options of the Temporal client: address, namespace,
// credentials and TLS, read by Temporal's envconfig from the TEMPORAL_ variables
// and its configuration file. Logger, metrics and data converter are left to the
// caller. An API key from TEMPORAL_API_KEY_FILE and a client certificate from
// files are read again when they change. The error is *Errors.
func (c Config) Temporal() (client.Options, error) {
	l := loader{errs: &Errors{}}
	opts := l.temporalOptions(&c)
	if len(l.errs.Mistakes) > 0 {
		return client.Options{}, l.errs
	}
	return opts, nil
}

func (l *loader) checkTemporal(c *Config) {
	opts := l.temporalOptions(c)
	if l.wrong("TEMPORAL_ADDRESS") {
		return
	}
	if tlsConfig := opts.ConnectionOptions.TLS; tlsConfig != nil {
		if tlsConfig.InsecureSkipVerify {
			c.warn("TEMPORAL_TLS_DISABLE_HOST_VERIFICATION is set: anyone between here and the server can read jobs and answers")
		}
		return
	}
	l.clearText(c, "TEMPORAL_ADDRESS", temporalHost(opts.HostPort), "is reached without TLS, so jobs, answers and keys", "set TEMPORAL_TLS=true")
}

func (l *loader) temporalOptions(c *Config) client.Options {
	for _, variable := range []string{"TEMPORAL_TLS", "TEMPORAL_TLS_DISABLE_HOST_VERIFICATION"} {
		// envconfig ignores what it does not understand, and would connect in clear
		// text after TEMPORAL_TLS=yes.
		if value, ok := c.environ[variable]; ok && !slices.Contains([]string{"1", "0", "true", "false"}, strings.ToLower(value)) {
			l.mistake(variable, "must be 1, true, 0 or false")
		}
	}
	profile, ok := l.temporalProfile(c)
	if !ok {
		return client.Options{}
	}
	if profile.Address == "" {
		profile.Address = defaultTemporalAddress
	}
	if profile.Namespace == "" {
		profile.Namespace = defaultTemporalNamespace
	}
	if !hostPort(withoutScheme(profile.Address), false) {
		l.mistake("TEMPORAL_ADDRESS", "must be host:port, for example localhost:7233")
	}
	opts, err := profile.ToClientOptions(envconfig.ToClientOptionsRequest{})
	if err != nil {
		l.temporalTLS(profile.TLS)
		return client.Options{}
	}
	if profile.TLS != nil && profile.TLS.ClientCertPath != "" && opts.ConnectionOptions.TLS != nil {
		opts.ConnectionOptions.TLS.GetClientCertificate = clientCertificate(profile.TLS.ClientCertPath, profile.TLS.ClientKeyPath)
		opts.ConnectionOptions.TLS.Certificates = nil
	}
	if path := c.environ["TEMPORAL_API_KEY_FILE"]; path != "" && c.sources["TEMPORAL_API_KEY"] == SourceFile {
		key := &secretFile{path: path, value: profile.APIKey, read: time.Now()}
		opts.Credentials = client.NewAPIKeyDynamicCredentials(key.get)
	}
	return opts
}

// temporalProfile reads the configuration file and puts the variables over it.
func (l *loader) temporalProfile(c *Config) (envconfig.ClientConfigProfile, bool) {
	file := c.environ["TEMPORAL_CONFIG_FILE"]
	if file != "" {
		if _, err := os.Stat(file); err != nil {
			l.mistake("TEMPORAL_CONFIG_FILE", "cannot read the file: %v", withoutPath(err))
			return envconfig.ClientConfigProfile{}, false
		}
	}
	request := envconfig.LoadClientConfigProfileOptions{EnvLookup: lookup(c.environ)}
	// The default file is in the user's configuration directory, which is known
	// by these variables. Without any there is no user, as in a test.
	home := slices.ContainsFunc([]string{"HOME", "XDG_CONFIG_HOME", "AppData"}, func(name string) bool { return c.environ[name] != "" })
	request.DisableFile = file == "" && !home && c.environ["TEMPORAL_PROFILE"] == ""
	profile, err := envconfig.LoadClientConfigProfile(request)
	if err == nil {
		return profile, true
	}
	// The text of the error may quote the file, which may hold keys.
	variable, problem := "TEMPORAL_CONFIG_FILE", "the file is not a Temporal client configuration (TOML)"
	if name := c.environ["TEMPORAL_PROFILE"]; name != "" {
		variable, problem = "TEMPORAL_PROFILE", "the configuration file has no such profile, or is not valid TOML"
	}
	l.mistake(variable, "%s", problem)
	return envconfig.ClientConfigProfile{}, false
}

// temporalTLS finds out which of the TLS settings is not usable.
func (l *loader) temporalTLS(t *envconfig.ClientConfigTLS) {
	before := len(l.errs.Mistakes)
	if t.ServerCACertPath != "" {
		l.certificates("TEMPORAL_TLS_SERVER_CA_CERT_PATH", t.ServerCACertPath)
	}
	for _, file := range []struct{ variable, path string }{
		{"TEMPORAL_TLS_CLIENT_CERT_PATH", t.ClientCertPath},
		{"TEMPORAL_TLS_CLIENT_KEY_PATH", t.ClientKeyPath},
	} {
		if file.path == "" {
			continue
		}
		if _, err := os.ReadFile(file.path); err != nil {
			l.mistake(file.variable, "cannot read the file: %v", withoutPath(err))
		}
	}
	if len(l.errs.Mistakes) == before {
		l.mistake("TEMPORAL_TLS_CLIENT_CERT_PATH", "certificate and key (also _DATA, and the server's CA) must both be given, "+
			"each in one way, as PEM, and belong together")
	}
}

// temporalHost is the host of an address, which may be a gRPC target such as
// dns:///temporal:7233.
func temporalHost(address string) string {
	address = withoutScheme(address)
	if i := strings.LastIndexByte(address, ':'); i >= 0 {
		address = address[:i]
	}
	return address
}

func withoutScheme(address string) string {
	if _, target, found := strings.Cut(address, ":///"); found {
		return target
	}
	return address
}

// clientCertificate reads the certificate at each handshake, so that a renewed
// one is used without a restart.
func clientCertificate(certPath, keyPath string) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(certPath, keyPath)
		if err != nil {
			return nil, fmt.Errorf("TEMPORAL_TLS_CLIENT_CERT_PATH: %w", err)
		}
		return &cert, nil
	}
}

// secretFile is a secret in a file that may be replaced at any time.
type secretFile struct {
	path string

	mu    sync.Mutex
	value string
	read  time.Time
}

// secretAge is how old a secret may be before its file is read again.
const secretAge = 10 * time.Second

// get returns the secret. While the file cannot be read, which happens in the
// moment it is replaced, the last one is used.
func (s *secretFile) get(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) > secretAge {
		if value, err := readSecret(s.path); err == nil {
			s.value = value
		}
		s.read = time.Now()
	}
	if s.value == "" {
		return "", errors.New("TEMPORAL_API_KEY_FILE: no key could be read")
	}
	return s.value, nil
}

// lookup gives envconfig the variables without the process's environment.
type lookup map[string]string

func (l lookup) LookupEnv(name string) (string, bool) {
	value, ok := l[name]
	return value, ok
}

func (l lookup) Environ() []string {
	pairs := make([]string, 0, len(l))
	for name, value := range l {
		pairs = append(pairs, name+"="+value)
	}
	slices.Sort(pairs)
	return pairs
}
