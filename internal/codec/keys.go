package codec

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	keySize  = 32 // bytes: AES-256
	maxKeyID = 64
)

// Key is a named AES-256 key. It prints as its id, whatever the verb.
type Key struct {
	ID     string
	secret []byte
}

// Format keeps the key itself out of everything that is printed.
func (k Key) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%s:[redacted]", k.ID) }

// ParseKeys reads a list of keys, each as id:base64 of 32 bytes, separated by
// commas or line breaks (ENCRYPTION_KEYS). The first is the one that encrypts.
// Ids are 1 to 64 letters, digits, dots, underscores and hyphens. The error
// names every wrong key by its position, from 1, and repeats nothing of it.
func ParseKeys(text string) ([]Key, error) {
	var keys []Key
	var wrong []string
	ids := make(map[string]int)
	position := 0
	for item := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		position++
		key, err := parseKey(item)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("key %d %v", position, err))
			continue
		}
		if first, twice := ids[key.ID]; twice {
			wrong = append(wrong, fmt.Sprintf("key %d has the id of key %d", position, first))
			continue
		}
		ids[key.ID] = position
		keys = append(keys, key)
	}
	switch {
	case len(wrong) > 0:
		return nil, errors.New(strings.Join(wrong, "; "))
	case len(keys) == 0:
		return nil, errors.New("holds no key")
	}
	return keys, nil
}

func parseKey(item string) (Key, error) {
	id, encoded, found := strings.Cut(item, ":")
	if !found {
		return Key{}, errors.New("must be an id, a colon and the key in base64")
	}
	id = strings.TrimSpace(id)
	if !validID(id) {
		return Key{}, fmt.Errorf("must have an id of 1 to %d letters, digits, dots, underscores and hyphens before the colon", maxKeyID)
	}
	secret, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(encoded))
	if err != nil || len(secret) != keySize {
		return Key{}, fmt.Errorf("must have the base64 of exactly %d bytes behind the colon (openssl rand -base64 %d)", keySize, keySize)
	}
	return Key{ID: id, secret: secret}, nil
}

func validID(id string) bool {
	if id == "" || len(id) > maxKeyID {
		return false
	}
	for _, r := range id {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
		default:
			return false
		}
	}
	return true
}
