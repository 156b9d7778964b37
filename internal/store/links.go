package store

import (
	"crypto/tls"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

// Link is one server that a database URL leads to, and how what travels there is
// protected.
type Link struct {
	Host      string // a name or address; empty for a socket of this machine
	Encrypted bool   // never in clear text; false also where clear text is only the second choice
	Verified  bool   // and the server's certificate is checked
}

// Links returns the servers a URL leads to, none for SQLite. The error is that
// of Validate.
func Links(cfg Config) ([]Link, error) {
	if err := Validate(cfg); err != nil {
		return nil, err
	}
	scheme, _, _ := strings.Cut(cfg.URL, "://")
	switch scheme {
	case postgresName, "postgresql":
		parsed, err := pgx.ParseConfig(cfg.URL)
		if err != nil {
			return nil, err
		}
		return postgresLinks(parsed), nil
	case mysqlName, "mariadb":
		parsed, err := mysqlConfig(cfg.URL)
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(parsed.Addr)
		if err != nil {
			return nil, err
		}
		return []Link{mysqlLink(parsed, host)}, nil
	default:
		return nil, nil
	}
}

// postgresLinks joins what the driver would try on each host: the mode "prefer",
// which is the default, is an attempt with TLS and one without.
func postgresLinks(cfg *pgx.ConnConfig) []Link {
	var links []Link
	add := func(host string, secure *tls.Config) {
		encrypted := secure != nil
		verified := encrypted && (!secure.InsecureSkipVerify || secure.VerifyPeerCertificate != nil) // the latter is verify-ca
		if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
			host = "" // a socket
		}
		for i := range links {
			if links[i].Host == host {
				links[i].Encrypted = links[i].Encrypted && encrypted
				links[i].Verified = links[i].Verified && verified
				return
			}
		}
		links = append(links, Link{Host: host, Encrypted: encrypted, Verified: verified})
	}
	add(cfg.Host, cfg.TLSConfig)
	for _, f := range cfg.Fallbacks {
		add(f.Host, f.TLSConfig)
	}
	return links
}

func mysqlLink(cfg *mysql.Config, host string) Link {
	encrypted := cfg.TLS != nil && !cfg.AllowFallbackToPlaintext
	return Link{Host: host, Encrypted: encrypted, Verified: encrypted && !cfg.TLS.InsecureSkipVerify}
}
