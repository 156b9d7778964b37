package llm

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/nodpt/executor/internal/reach"
)

// ConfigError says which setting is wrong and why. It never quotes the value,
// which may hold credentials.
type ConfigError struct {
	Setting string // the environment variable
	Reason  string
}

func (e *ConfigError) Error() string { return e.Setting + " " + e.Reason }

const (
	ollamaPath = "/api/chat"
	openaiPath = "/v1/chat/completions"
)

// resolveEndpoint turns the configured endpoint into the URL to call and the
// warnings to print. It does not resolve names: what a name points at is
// checked when it is dialled.
func resolveEndpoint(cfg Config) (*url.URL, []string, error) {
	refuse := func(reason string) (*url.URL, []string, error) {
		return nil, nil, &ConfigError{Setting: "LLM_ENDPOINT", Reason: reason}
	}
	raw := strings.TrimSpace(cfg.Endpoint)
	if raw == "" {
		return refuse("is empty: give a full URL such as http://localhost:11434" + openaiPath)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return refuse("is not a valid URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return refuse("must begin with http:// or https://")
	}
	if u.Hostname() == "" {
		return refuse("names no host")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return refuse("has an impossible port: use 1 to 65535")
		}
	}
	literal, err := netip.ParseAddr(u.Hostname())
	if !cfg.AllowLinkLocal && (err == nil && linkLocal(literal) || metadataName(u.Hostname())) {
		return refuse("points at a link-local or cloud metadata address, where credentials live: use the address of the LLM server")
	}

	var warnings []string
	path := strings.TrimRight(u.Path, "/")
	if base, found := strings.CutSuffix(path, ollamaPath); found {
		u.Path, u.RawPath = base+openaiPath, ""
		warnings = append(warnings, "LLM_ENDPOINT ends in Ollama's own "+ollamaPath+": calling "+u.Path+" of the same server instead")
	} else if path == "" || strings.HasSuffix(path, "/v1") {
		warnings = append(warnings, "LLM_ENDPOINT is used as it is and does not look like a chat endpoint: those usually end in "+openaiPath)
	}
	if u.Scheme == "http" {
		travels := "prompts and answers"
		if cfg.APIKey != "" {
			travels += " and the API key"
		}
		switch where := reach.Of(u.Hostname()); {
		case where == reach.Host:
		case where == reach.Private || cfg.AllowClearText:
			warnings = append(warnings, "LLM_ENDPOINT is plain http: "+travels+" cross the network in clear text to "+u.Hostname())
		default:
			return refuse("would send " + travels + " over the internet in clear text: use https, or set ALLOW_INSECURE=1 if the network in between is safe")
		}
	}
	return u, warnings, nil
}

// metadataName reports whether a name is one that clouds give to their metadata
// service. Any other name is judged by its address when it is dialled; these are
// refused at start, where somebody reads the reason.
func metadataName(host string) bool {
	switch strings.ToLower(strings.TrimSuffix(host, ".")) {
	case "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal":
		return true
	}
	return false
}

// linkLocal reports whether an address is link-local or one at which a cloud
// serves the credentials of its machines.
func linkLocal(a netip.Addr) bool {
	a = reach.Plain(a)
	if a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
		return true
	}
	switch {
	case a.Is4():
		switch a.As4() {
		case [4]byte{100, 100, 100, 200}, // Alibaba Cloud
			[4]byte{168, 63, 129, 16}, // Azure
			[4]byte{192, 0, 0, 192}:   // Oracle Cloud
			return true
		}
		return false
	default:
		b := a.As16()
		amazon := b[0] == 0xfd && b[1] == 0x00 && b[2] == 0x0e && b[3] == 0xc2
		google := b == [16]byte{0: 0xfd, 1: 0x20, 3: 0xce, 14: 0x02, 15: 0x54}
		scaleway := b == [16]byte{0: 0xfd, 3: 0x42, 15: 0x42}
		return amazon || google || scaleway
	}
}

func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

func endpointKey(u *url.URL) string {
	sum := sha256.Sum256([]byte(strings.ToLower(u.Scheme+"://"+u.Host) + u.Path))
	return hex.EncodeToString(sum[:8])
}
