package llmtest

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// Behavior is what happens to a call. The zero value answers at once.
//
// A prompt whose first line begins with one of these directives chooses its own
// (for inspector prompts, which are JSON objects, the field "task" may); words
// after it are ignored, so that prompts can be made distinct:
//
//	!fail 503            that status, with an error object
//	!429 7               429 with Retry-After: 7 (without a number: no header)
//	!quota               429 with code insufficient_quota
//	!hang                no answer until the client leaves or Release
//	!cut                 half an answer, then the connection breaks
//	!malformed html      a broken answer with status 200: see Malformed
//	!slow 3s             answer after so long
//	!drip 100ms          one byte of the answer each so long
//	!length 1000         an answer of so many bytes
//	!finish length       an answer with that finish_reason
//	!gzip                a compressed answer, although nobody asked
//	!echo some words     answer with the rest of the prompt
//
// With "x2" after it a directive holds for the first two calls with exactly
// this prompt; later ones are answered.
type Behavior struct {
	LatencyMS int `json:"latency_ms"` // time before the answer
	// Status, if neither 0 nor 200, fails the call with an error object of
	// this Code (or a usual one), and Retry-After of so many seconds, as an
	// HTTP date if RetryAfterDate says so.
	Status         int    `json:"status"`
	Code           string `json:"code"`
	RetryAfter     int    `json:"retry_after"`
	RetryAfterDate bool   `json:"retry_after_date"`
	Hang           bool   `json:"hang"`
	Cut            bool   `json:"cut"`
	// Malformed is one of html, empty, null, array, error, truncated,
	// nochoices, nullcontent, emptycontent, stream, endless (text until the
	// client leaves), and invalidutf8, which is an answer but for its bytes.
	Malformed    string `json:"malformed"`
	DripMS       int    `json:"drip_ms"` // milliseconds per byte
	Gzip         bool   `json:"gzip"`
	Answer       string `json:"answer"`        // instead of the usual one
	AnswerLength int    `json:"answer_length"` // in bytes
	FinishReason string `json:"finish_reason"` // default stop
}

// over returns b with the gaps filled from base.
func (b Behavior) over(base Behavior) Behavior {
	fill(&b.LatencyMS, base.LatencyMS)
	fill(&b.AnswerLength, base.AnswerLength)
	fill(&b.DripMS, base.DripMS)
	fill(&b.FinishReason, base.FinishReason)
	fill(&b.Answer, base.Answer)
	fill(&b.Gzip, base.Gzip)
	return b
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

type directive struct {
	behavior Behavior
	times    int
}

// parseDirective finds the directive in a prompt. A prompt that begins with an
// exclamation mark but names no directive is an ordinary prompt.
func parseDirective(prompt string) (directive, bool) {
	text := strings.TrimSpace(prompt)
	if strings.HasPrefix(text, "{") {
		var inspector struct {
			Task string `json:"task"`
		}
		if json.Unmarshal([]byte(text), &inspector) == nil {
			text = strings.TrimSpace(inspector.Task)
		}
	}
	if !strings.HasPrefix(text, "!") {
		return directive{}, false
	}
	line, _, _ := strings.Cut(text, "\n")
	words := strings.Fields(line)
	args := words[1:]
	var d directive
	switch words[0] {
	case "!echo":
		_, rest, _ := strings.Cut(text, "!echo")
		d.behavior.Answer = strings.TrimSpace(rest)
		return d, true
	case "!fail":
		d.behavior.Status = 500
		if n, ok := number(args); ok && n >= 300 && n <= 599 {
			d.behavior.Status = n
		}
	case "!429":
		d.behavior.Status = 429
		d.behavior.RetryAfter, _ = number(args)
	case "!quota":
		d.behavior.Status, d.behavior.Code = 429, "insufficient_quota"
	case "!hang":
		d.behavior.Hang = true
	case "!cut":
		d.behavior.Cut = true
	case "!gzip":
		d.behavior.Gzip = true
	case "!malformed":
		d.behavior.Malformed = word(args, "html")
	case "!slow":
		d.behavior.LatencyMS = millis(args, 3000)
	case "!drip":
		d.behavior.DripMS = millis(args, 100)
	case "!length":
		d.behavior.AnswerLength, _ = number(args)
	case "!finish":
		d.behavior.FinishReason = word(args, "length")
	default:
		return directive{}, false
	}
	d.times = times(args)
	return d, true
}

func word(args []string, fallback string) string {
	if len(args) == 0 || isTimes(args[0]) {
		return fallback
	}
	return args[0]
}

func number(args []string) (int, bool) {
	if len(args) == 0 {
		return 0, false
	}
	n, err := strconv.Atoi(args[0])
	return max(n, 0), err == nil
}

func millis(args []string, fallback int) int {
	if len(args) > 0 {
		if d, err := time.ParseDuration(args[0]); err == nil {
			return int(d.Milliseconds())
		}
	}
	return fallback
}

// times finds "xN" among a directive's first words.
func times(args []string) int {
	for _, arg := range args[:min(len(args), 2)] {
		if isTimes(arg) {
			n, _ := strconv.Atoi(arg[1:])
			return n
		}
	}
	return 0
}

func isTimes(s string) bool {
	if len(s) < 2 || s[0] != 'x' {
		return false
	}
	n, err := strconv.Atoi(s[1:])
	return err == nil && n > 0
}
