package workflows

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.temporal.io/sdk/workflow"

	"github.com/nodpt/executor/internal/job"
)

// What a run tells the Web UI: the details it is started with, the current
// details it keeps up to date, and the summaries of its activities. All of them
// are Markdown, which the UI turns into a page with the markup of whoever chose
// the ids in it; so every text from outside is a code span of one line. None of
// them holds content.

// maxShown bounds an id in these texts, in bytes. The server takes details of
// 20 kB and summaries of 400 bytes, encrypted.
const maxShown = 160

// Plain makes a text from outside fit for one line: control characters, marks
// that turn the direction of text and bytes that are no text become escape
// sequences (\n, \u202e, \xff), and what exceeds limit bytes is cut off.
func Plain(s string, limit int) string { return escape(s, limit, "") }

// escape is Plain that escapes some more characters.
func escape(s string, limit int, more string) string {
	const mark = "…"
	var b strings.Builder
	cut := 0 // how much of b stays if the mark has to follow it
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size <= 1:
			b.WriteString(`\x` + hex(rune(s[i]), 2))
		case unicode.IsPrint(r) && !strings.ContainsRune(more, r):
			b.WriteString(s[i : i+size])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r > 0xffff:
			b.WriteString(`\U` + hex(r, 8))
		default:
			b.WriteString(`\u` + hex(r, 4))
		}
		if b.Len() > limit {
			return b.String()[:cut] + mark
		}
		if b.Len()+len(mark) <= limit {
			cut = b.Len()
		}
		i += size
	}
	return b.String()
}

func hex(r rune, digits int) string {
	s := strconv.FormatInt(int64(r), 16)
	return strings.Repeat("0", max(digits-len(s), 0)) + s
}

// code shows a text from outside as a code span, in which nothing but a backtick
// has a meaning.
func code(s string) string {
	if strings.TrimSpace(s) == "" {
		return "(empty)" // a code span cannot be
	}
	return "`" + escape(s, maxShown, "`") + "`"
}

// StartDetails are the details a run is started with: whose job it is, and where
// it came from. Like the search attributes they hold identifiers only.
func StartDetails(in Input) string {
	var b strings.Builder
	for _, item := range []struct{ name, value string }{
		{"Job", in.Job.ID},
		{"Stream", in.Origin.Stream},
		{"Entry", in.Origin.EntryID},
		{"User", in.Job.UserID},
		{"Project", in.Job.ProjectID},
		{"Node", in.Job.NodeID},
		{"NodPT workflow", in.Job.WorkflowID},
	} {
		if item.value != "" {
			b.WriteString("- " + item.name + ": " + code(item.value) + "\n")
		}
	}
	return b.String()
}

// callSummary is the summary of the role activity.
func callSummary(role job.Role, o Override) string {
	s := string(role) + " call"
	if o.Model != "" {
		s += ", model " + code(o.Model)
	}
	if o.MaxTokens > 0 {
		s += ", at most " + strconv.Itoa(o.MaxTokens) + " tokens"
	}
	return s
}

// story is the current details of a run: a line per thing done, and what it does
// now. The UI gets it by a query, which the worker answers from memory: it costs
// neither an event nor a call to the server.
type story struct{ done, doing string }

// did adds a line.
func (s *story) did(what string) { s.done += "- " + what + "\n" }

// now shows what was done, and what is being done.
func (s *story) now(ctx workflow.Context, doing string) {
	s.doing = doing
	s.show(ctx, "Now", doing)
}

// stuck shows that the final step being done could not be done at once.
func (s *story) stuck(ctx workflow.Context) {
	s.show(ctx, "Now", s.doing+", again and again until it succeeds; the last error is below, at the pending activity")
}

// ended shows what was done, and how it ended.
func (s *story) ended(ctx workflow.Context, how string) { s.show(ctx, "Ended", how) }

func (s *story) show(ctx workflow.Context, title, text string) {
	details := "**" + title + ":** " + text + "\n"
	if s.done != "" {
		details = s.done + "\n" + details
	}
	workflow.SetCurrentDetails(ctx, details)
}

// answered adds the answer's figures. elapsed is the time of all attempts, with
// all waiting for them and between them.
func (s *story) answered(o job.Outcome, elapsed time.Duration) {
	line := "Answered: model " + code(o.Model) + ", " + tokens(o) + ", " + attempts(o.Attempts) +
		", after " + elapsed.Round(100*time.Millisecond).String()
	if o.Truncated {
		line += ", truncated at the token limit"
	}
	s.did(line)
}

// stored adds what became of the row.
func (s *story) stored(row job.Row, verdict job.Verdict) {
	if verdict == job.Superseded {
		s.did("Superseded: a newer run has stored " + outcomeText(row) + ", so nothing is published")
		return
	}
	s.did("Stored: " + outcomeText(row))
}

// failed adds why the call failed.
func (s *story) failed(o job.Outcome, cause string) {
	line := "Failed: " + code(o.ErrorCode)
	if o.Model != "" {
		line += ", model " + code(o.Model)
	}
	if o.Attempts > 0 {
		line += ", " + attempts(o.Attempts)
	}
	s.did(line)
	if cause != "" {
		s.did("Cause: `" + escape(cause, maxCause, "`") + "`")
	}
}

// maxCause bounds the text for operators of a failure, in bytes.
const maxCause = 1024

func tokens(o job.Outcome) string {
	if o.PromptTokens == 0 && o.CompletionTokens == 0 {
		return "tokens not counted"
	}
	return strconv.FormatInt(o.PromptTokens, 10) + " prompt and " + strconv.FormatInt(o.CompletionTokens, 10) + " completion tokens"
}

func attempts(n int) string {
	if n == 1 {
		return "1 attempt"
	}
	return strconv.Itoa(n) + " attempts"
}

// outcomeText names an outcome: its status, and the code where there is one.
func outcomeText(row job.Row) string {
	if row.ErrorCode == "" || row.ErrorCode == string(row.Status) {
		return string(row.Status)
	}
	return string(row.Status) + " with " + code(row.ErrorCode)
}
