package config

import (
	"net"
	"net/netip"
	"net/url"
	"strings"
	"unicode"

	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/reach"
)

// minToken and maxToken bound CODEC_TOKEN. It must fit into a URL's path as it is,
// because that is the one place where the Web UI takes it.
const (
	minToken = 20
	maxToken = 200
)

func (l *loader) checkEncryption(c *Config) {
	if c.EncryptionKeys != "" {
		keys, err := codec.ParseKeys(c.EncryptionKeys)
		if err != nil {
			l.mistake("ENCRYPTION_KEYS", "must be a list of id:base64, separated by commas or line breaks: %v", err)
		}
		c.keys = keys
	}
	switch {
	case !hostPort(c.CodecAddr, true):
		l.mistake("CODEC_ADDR", "must be host:port, for example 127.0.0.1:8234")
	case !loopback(c.CodecAddr):
		c.warn("CODEC_ADDR can be reached from other machines, over plain HTTP: put a proxy with TLS in front of the codec server, " +
			"or jobs and its token cross the network in clear text")
	}
	plain := func(r rune) bool {
		return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-._~", r))
	}
	if n := len(c.CodecToken); n > 0 && (n < minToken || n > maxToken ||
		strings.ContainsFunc(c.CodecToken, func(r rune) bool { return !plain(r) })) {
		l.mistake("CODEC_TOKEN", "must be %d to %d letters, digits, hyphens, dots, underscores and tildes (openssl rand -hex 32)", minToken, maxToken)
	}
	if c.CodecOrigin == "" {
		c.CodecOrigin = originOf(c.TemporalUIURL)
		return
	}
	given := c.CodecOrigin
	c.CodecOrigin = originOf(given)
	if u, err := url.Parse(given); c.CodecOrigin == "" || err != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		l.mistake("CODEC_ORIGIN", "must be one origin as browsers send it, for example http://127.0.0.1:8233")
	}
}

// originOf is the origin of an http or https URL in the form in which browsers
// send it, or nothing.
func originOf(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return ""
	}
	host := strings.ToLower(u.Host)
	if port := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]; strings.HasSuffix(host, port) {
		host = strings.TrimSuffix(host, port)
	}
	return u.Scheme + "://" + strings.TrimSuffix(host, ":")
}

// loopback reports whether an address to listen on is out of the network's reach.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback()
	}
	return reach.Of(host) == reach.Host
}
