package job

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// member is one name and raw value of a JSON object. Objects are read as lists
// for the reason that entries are: a name may be there twice.
type member struct {
	name string
	raw  json.RawMessage
}

// parseObject reads the members of a JSON object in order, or returns the reason
// why it cannot. The depth is checked by a plain scan before any decoder sees
// the text.
func parseObject(text string) (members []member, reason string) {
	switch {
	case !utf8.ValidString(text):
		return nil, ReasonNotUTF8
	case nesting(text) > MaxJSONDepth:
		return nil, ReasonJSONTooDeep
	case !json.Valid([]byte(text)): // Token alone lets some mistakes pass
		return nil, ReasonJSONInvalid
	}
	dec := json.NewDecoder(strings.NewReader(text))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, ReasonJSONInvalid
	}
	for dec.More() {
		token, err := dec.Token()
		name, isName := token.(string)
		if err != nil || !isName {
			return nil, ReasonJSONInvalid
		}
		m := member{name: name}
		if err := dec.Decode(&m.raw); err != nil || len(m.raw) == 0 {
			return nil, ReasonJSONInvalid
		}
		members = append(members, m)
	}
	return members, ""
}

func (m member) isNull() bool   { return m.raw[0] == 'n' }
func (m member) isString() bool { return m.raw[0] == '"' }

// text returns the value as the text that a stream field of that name would
// have: strings as they are, numbers as they are written (an id must not pass
// through a float), and the rest byte for byte where raw says that this is
// welcome.
func (m member) text(raw bool) (value, reason string) {
	switch m.raw[0] {
	case '"':
		if loneSurrogate(m.raw) {
			// encoding/json would put U+FFFD, and two different ids would be equal.
			return "", ReasonNotUTF8
		}
		if err := json.Unmarshal(m.raw, &value); err != nil {
			return "", ReasonJSONInvalid
		}
		return value, ""
	case 't', 'f', '{', '[':
		if !raw {
			return "", ReasonWrongType
		}
	}
	return string(m.raw), ""
}

// nesting returns how deep brackets nest in the text, those inside of strings
// aside. It neither needs nor proves valid JSON.
func nesting(text string) int {
	depth, deepest := 0, 0
	inString := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// loneSurrogate reports whether a valid JSON string escapes half of a UTF-16
// pair, which UTF-8 cannot hold.
func loneSurrogate(quoted []byte) bool {
	s := quoted
	for {
		at := bytes.IndexByte(s, '\\')
		if at < 0 {
			return false
		}
		s = s[at:]
		unit, ok := utf16Escape(s)
		if !ok {
			s = s[2:] // an escape like \n or \\; valid JSON has both bytes
			continue
		}
		s = s[escapeLen:]
		switch {
		case unit < 0xD800 || unit > 0xDFFF: // not a surrogate
		case unit >= 0xDC00: // the second half comes first
			return true
		default:
			if second, ok := utf16Escape(s); !ok || second < 0xDC00 || second > 0xDFFF {
				return true
			}
			s = s[escapeLen:]
		}
	}
}

const escapeLen = len(`\uXXXX`)

// utf16Escape reads the escape \uXXXX that s begins with.
func utf16Escape(s []byte) (unit uint64, ok bool) {
	if len(s) < escapeLen || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(s[2:escapeLen]), 16, 16)
	return unit, err == nil
}
