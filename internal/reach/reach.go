// Package reach says how far something sent to a host travels, as far as the
// host's name or address tells. Clear text may stay on this machine, is worth a
// warning on a private network, and has no business on the internet; every
// server this program talks to is judged by this one rule. Names are not
// resolved: checking settings does no I/O, and an answer of today's name server
// says nothing about tomorrow's.
package reach

import (
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Reach is how far something travels.
type Reach int

// The reaches, from near to far.
const (
	Host    Reach = iota // stays on this machine
	Private              // a private address, or a name that is not one of the internet's
	Public
)

// Of judges a host: a name, or an address with or without brackets. An empty one
// is this machine.
func Of(host string) Reach {
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return OfAddr(addr)
	}
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return Host
	}
	// A single label (temporal, as in compose) or a suffix that nobody can
	// register (temporal.default.svc, db.internal) cannot be on the internet.
	if suffix, icann := publicsuffix.PublicSuffix(host); !icann && !strings.Contains(suffix, ".") || !strings.Contains(host, ".") {
		return Private
	}
	return Public
}

// OfAddr judges an address.
func OfAddr(addr netip.Addr) Reach {
	addr = Plain(addr)
	carrierGrade := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10) // RFC 6598, overlay networks
	switch {
	case addr.IsLoopback(), addr.IsUnspecified():
		return Host
	case addr.IsPrivate(), addr.IsLinkLocalUnicast(), addr.IsLinkLocalMulticast(), carrierGrade.Contains(addr):
		return Private
	}
	return Public
}

// Plain unwraps the forms in which an IPv6 address stands for an IPv4 one
// (mapped, and NAT64 of RFC 6052) and drops the zone.
func Plain(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if b := addr.As16(); addr.Is6() && [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b} {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}
