// Package codec keeps what jobs hold out of Temporal's database: it encrypts
// every payload (inputs, results, heartbeat details, memo, summaries, the texts
// of failures) before it leaves the process. It exists as a package of its own
// because the workers, the bridge, the commands and the codec server must agree
// on one format, and because what happens where a key is missing decides whether
// a mistake in the settings costs jobs.
//
// # Format
//
// An encrypted payload has the metadata
//
//	encoding: binary/encrypted
//	encryption-key-id: <id>
//
// and as data a random nonce of 12 bytes, followed by the whole original payload
// (protobuf) sealed with AES-256-GCM. Encoding and key id are authenticated with
// it. That adds less than Overhead bytes, whatever the size.
//
// The first key encrypts, all keys decrypt. Payloads that are not encrypted are
// read as they are, so that encryption can be switched on while runs are open.
package codec

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"
)

const (
	// Encoding marks an encrypted payload in its metadata.
	Encoding = "binary/encrypted"
	// MetadataKeyID is the metadata that names the key.
	MetadataKeyID = "encryption-key-id"
	// Overhead is more than encryption adds to a payload, in bytes.
	Overhead = 256
)

// Codec is a converter.PayloadCodec, safe for concurrent use. Without keys it
// encrypts nothing and can read nothing that is encrypted.
type Codec struct {
	active string // id of the key that encrypts; empty: none
	keys   map[string]cipher.AEAD
	notice func(*Error)
}

// New returns a codec that encrypts with the first key. notice may be nil; it is
// told of every encrypted payload that could not be read, from any goroutine.
func New(keys []Key, notice func(*Error)) (*Codec, error) {
	c := &Codec{keys: make(map[string]cipher.AEAD, len(keys)), notice: notice}
	if notice == nil {
		c.notice = func(*Error) {}
	}
	for i, key := range keys {
		if _, twice := c.keys[key.ID]; twice {
			return nil, fmt.Errorf("two encryption keys have the id %q", key.ID)
		}
		block, err := aes.NewCipher(key.secret)
		if err != nil {
			return nil, fmt.Errorf("encryption key %d: %w", i+1, err)
		}
		if c.keys[key.ID], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, fmt.Errorf("encryption key %d: %w", i+1, err)
		}
		if i == 0 {
			c.active = key.ID
		}
	}
	return c, nil
}

// Encrypts reports whether there is a key to encrypt with.
func (c *Codec) Encrypts() bool { return c.active != "" }

// Encode implements converter.PayloadCodec.
func (c *Codec) Encode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	if !c.Encrypts() {
		return payloads, nil
	}
	key := c.keys[c.active]
	encoded := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		if p == nil {
			continue
		}
		// With room for what sealing adds, so that it happens in place.
		plain, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, proto.Size(p)+key.Overhead()), p)
		if err != nil {
			// The error's text may quote the payload.
			return nil, fmt.Errorf("a payload cannot be encrypted: %T", err)
		}
		encoded[i] = &commonpb.Payload{
			Metadata: map[string][]byte{
				converter.MetadataEncoding: []byte(Encoding),
				MetadataKeyID:              []byte(c.active),
			},
			Data: key.Seal(plain[:0], nil, plain, additionalData(c.active)), //nolint:gosec // G407: this AEAD makes its own random nonce
		}
	}
	return encoded, nil
}

// Decode implements converter.PayloadCodec. An encrypted payload that cannot be
// read makes it return an *Error.
func (c *Codec) Decode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	decoded := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		if string(p.GetMetadata()[converter.MetadataEncoding]) != Encoding {
			decoded[i] = p
			continue
		}
		original, unreadable := c.open(p)
		if unreadable != nil {
			c.notice(unreadable)
			return nil, unreadable
		}
		decoded[i] = original
	}
	return decoded, nil
}

func (c *Codec) open(p *commonpb.Payload) (*commonpb.Payload, *Error) {
	id := string(p.GetMetadata()[MetadataKeyID])
	key, ok := c.keys[id]
	if !ok {
		return nil, &Error{KeyID: printable(id), Missing: true}
	}
	plain, err := key.Open(nil, nil, p.GetData(), additionalData(id))
	if err != nil {
		return nil, &Error{KeyID: id}
	}
	original := &commonpb.Payload{}
	if err := proto.Unmarshal(plain, original); err != nil {
		return nil, &Error{KeyID: id}
	}
	return original, nil
}

// additionalData binds a ciphertext to the metadata it stands beside.
func additionalData(id string) []byte { return []byte(Encoding + "\x00" + id) }

// Error says why an encrypted payload could not be read. It holds no content.
type Error struct {
	// KeyID is what the payload names, "?" if that is no key id.
	KeyID string
	// Missing says that there is no such key. Otherwise there is one, and it does
	// not fit: it is another key of the same id, or the payload was changed.
	Missing bool
}

// Error says what to do.
func (e *Error) Error() string {
	if e.Missing {
		return fmt.Sprintf("a payload is encrypted with the key %s, which ENCRYPTION_KEYS does not hold: add it there, behind the active one", e.KeyID)
	}
	return fmt.Sprintf("a payload cannot be decrypted with the key %s of ENCRYPTION_KEYS: that is not the key it was encrypted with, or the payload was changed", e.KeyID)
}

// printable is an id as far as it has the form of one: metadata can hold anything.
func printable(id string) string {
	if !validID(id) {
		return "?"
	}
	return id
}
