package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// modulePath is what the packages of this module begin with. Their error types
// hold kinds, codes and names, never a job's content or a secret.
const modulePath = "github.com/nodpt/executor"

const maxDepth = 10 // of a chain of wrapped errors

// describe is the text of an error as far as it is known to quote no data:
//
//   - error types of this module: their own text;
//   - network, system and TLS errors, the well-known sentinels, and those
//     answers of the Temporal server that speak of its state: their own text;
//   - what fmt.Errorf put around another error: kept, while the inner error is
//     described by these rules;
//   - plain errors.New texts: kept, but for what they put in quotes, which is
//     how libraries quote the data they could not read;
//   - everything else (a database's, a provider's, a JSON decoder's): the name
//     of the type, a stable code where it has one, and the errors inside it.
//
// For records of the SDK (strict) the third and fourth rule do not hold, because
// such texts were not written in this module.
func describe(err error, strict bool) (text string) {
	defer func() {
		if recover() != nil { // a typed nil, for example
			text = fmt.Sprintf("[%T]", err)
		}
	}()
	return clean(describer{strict: strict}.text(err, 0), 2*maxValue)
}

type describer struct{ strict bool }

func (d describer) text(err error, depth int) string {
	if err == nil || depth > maxDepth {
		return "…"
	}
	if wellKnown(err) {
		return err.Error()
	}
	if u, ok := err.(*url.Error); ok { //nolint:errorlint // each error of the chain is looked at in turn
		return d.urlError(u, depth)
	}
	pkg := packageOf(err)
	switch {
	case pkg == modulePath || strings.HasPrefix(pkg, modulePath+"/"), harmlessPackage(pkg), harmlessAnswer(err):
		return d.outer(err, depth)
	case pkg == "errors" || pkg == "fmt":
		return d.plain(err, depth)
	}
	return d.foreign(err, depth)
}

// outer is the error's own text, with the text of the error inside it replaced
// by that one's description.
func (d describer) outer(err error, depth int) string {
	full := err.Error()
	inner := errors.Unwrap(err)
	if inner == nil {
		return full
	}
	quoted := inner.Error()
	if i := strings.LastIndex(full, quoted); quoted != "" && i >= 0 {
		return full[:i] + d.text(inner, depth+1) + full[i+len(quoted):]
	}
	return full
}

// plain describes what errors.New, errors.Join and fmt.Errorf made.
func (d describer) plain(err error, depth int) string {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var parts []string
		for _, inner := range many.Unwrap() {
			parts = append(parts, d.text(inner, depth+1))
		}
		return strings.Join(parts, "; ")
	}
	inner := errors.Unwrap(err)
	switch {
	case inner != nil && d.strict:
		return d.text(inner, depth+1)
	case inner != nil:
		return d.outer(err, depth)
	case d.strict:
		return "[error]"
	}
	return withoutQuotes(err.Error())
}

// foreign describes an error of which nothing is known but its type.
func (d describer) foreign(err error, depth int) string {
	text := fmt.Sprintf("[%T]", err)
	switch e := err.(type) { //nolint:errorlint // as above
	case *temporal.ApplicationError:
		text = "ApplicationError"
		if identifier(e.Type()) {
			text += "(" + e.Type() + ")"
		}
	case interface{ Status() *status.Status }: // the Temporal server's answers
		text = fmt.Sprintf("[%T] %s", err, e.Status().Code())
	case interface{ GRPCStatus() *status.Status }:
		text = fmt.Sprintf("[%T] %s", err, e.GRPCStatus().Code())
	case interface{ SQLState() string }: // Postgres
		if state := e.SQLState(); identifier("s" + state) {
			text += " SQLSTATE " + state
		}
	}
	if inner := errors.Unwrap(err); inner != nil {
		text += ": " + d.text(inner, depth+1)
	}
	return text
}

// urlError keeps the method and the host. Path and query of an address can hold
// keys.
func (d describer) urlError(e *url.Error, depth int) string {
	host := "[address]"
	if u, err := url.Parse(e.URL); err == nil && u.Host != "" {
		host = u.Scheme + "://" + u.Host
	}
	return e.Op + " " + host + ": " + d.text(e.Err, depth+1)
}

func wellKnown(err error) bool {
	return slices.Contains([]error{
		context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, io.ErrShortWrite,
		http.ErrServerClosed,
	}, err)
}

// harmlessPackage reports whether errors of that package speak of addresses,
// files and certificates only.
func harmlessPackage(path string) bool {
	switch path {
	case "context", "net", "syscall", "os", "io/fs", "internal/poll", "crypto/tls", "crypto/x509":
		return true
	}
	return false
}

// harmlessAnswer reports whether the error is an answer of the Temporal server
// about its own state. The others, InvalidArgument above all, may quote what
// was sent.
func harmlessAnswer(err error) bool {
	switch e := err.(type) { //nolint:errorlint // each error of the chain is looked at in turn
	case *serviceerror.Unavailable, *serviceerror.DeadlineExceeded, *serviceerror.Canceled,
		*serviceerror.NamespaceNotFound, *serviceerror.PermissionDenied, *serviceerror.ResourceExhausted,
		*serviceerror.NotFound, *serviceerror.WorkflowExecutionAlreadyStarted:
		return true
	case interface{ GRPCStatus() *status.Status }:
		return e.GRPCStatus().Code() == codes.Unavailable
	}
	return false
}

func packageOf(err error) string {
	t := reflect.TypeOf(err)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}

var (
	quotedText = regexp.MustCompile("\"[^\"]*\"?|`[^`]*`?|\\B'[^']*'?")
	userInfo   = regexp.MustCompile(`://[^/\s@]*@`)
	keyValue   = regexp.MustCompile(`(?i)\b((?:[a-z_]*pass(?:word|wd)?|pwd|[a-z_]*api[_-]?key|[a-z_]*token|[a-z_]*secret)\s*[=:]\s*)[^\s,;&"']+`)
	bearer     = regexp.MustCompile(`(?i)\b(bearer\s+)\S+`)
)

func withoutQuotes(s string) string { return quotedText.ReplaceAllString(s, `"…"`) }

// withoutCredentials is the second line of defence: whoever logs an address has
// to redact it, and this catches the usual forms of what was forgotten.
func withoutCredentials(s string) string {
	if !strings.ContainsAny(s, "@=:") && !strings.Contains(strings.ToLower(s), "bearer") {
		return s
	}
	s = userInfo.ReplaceAllString(s, "://…@")
	s = bearer.ReplaceAllString(s, "${1}…")
	return keyValue.ReplaceAllString(s, "${1}…")
}
