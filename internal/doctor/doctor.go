// Package doctor finds out why nothing works. It exists because a job passes four
// servers, and what a person sees of any mistake in any of them is the same: no
// answer. It asks each server what the executor will ask of it, in the order in
// which things fail, and says for whatever is wrong what the cause is and which
// variable or command puts it right.
//
// It shows no content and no secret, sends no prompt unless told to, and changes
// nothing unless told to.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.temporal.io/sdk/client"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
)

// State is what came of a check.
type State string

// The states. A warning is something an executor can work with. A skipped check
// could not be made; its cause says why.
const (
	OK      State = "ok"
	Warning State = "warning"
	Problem State = "problem"
	Skipped State = "skipped"
)

// Result is what one check found.
type Result struct {
	Check string `json:"check"` // for example redis.login
	State State  `json:"state"`
	Found string `json:"found,omitempty"`
	// Cause says why what was found is not as it should be, or why nothing was
	// looked at.
	Cause string `json:"cause,omitempty"`
	// Fix lists what puts it right: commands to run and settings to make.
	Fix []string `json:"fix,omitempty"`
	// Fixed says what was put right just now.
	Fixed string `json:"fixed,omitempty"`
	// Unreachable marks a problem that may be over by itself: a server does not
	// answer.
	Unreachable bool `json:"unreachable,omitempty"`
	// Settings are the settings in force that are not defaults, without secrets.
	Settings []Setting `json:"settings,omitempty"`
}

// Setting is one variable, fit to be shown.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Mistake is something wrong with a variable.
type Mistake struct{ Variable, Problem string }

// Model is one that the settings name.
type Model struct {
	Name      string
	Variables []string // that name it
	// Optional models are asked for only where a chat entry names them.
	Optional bool
}

// Variables names the variables that are in force where there are several for
// the same thing.
type Variables struct {
	Redis  string // REDIS_URL, REDIS_CONNECTION_FILE, …
	LLMKey string
	// DATABASE_URL, or the DB_ variables that stand for its parts.
	DatabaseHost, DatabaseLogin, DatabaseName string
}

// Config is what there is to look at.
type Config struct {
	Settings []Setting
	Mistakes []Mistake // if there are any, nothing else is looked at
	Warnings []string

	Redis    stream.Config
	Store    store.Config
	LLM      llm.Config
	Temporal client.Options

	Variables Variables
	Models    []Model
	ChatList  string // empty: off
	// MaxInFlight is BRIDGE_MAX_IN_FLIGHT.
	MaxInFlight int64
	// HTTPAddr is where an executor on this machine would answer.
	HTTPAddr string

	// Fix puts right what can be put right without harm.
	Fix bool
	// Ask sends a request for one token to each model.
	Ask bool
}

// Run makes all checks and returns their results, in an order that is always the
// same. Checks that ctx ends before they are made count as servers that do not
// answer.
func Run(ctx context.Context, cfg Config) []Result {
	d := &doctor{cfg: cfg, asked: make(chan struct{})}
	stages := []stage{
		{redisChecks(), d.redis},
		{temporalChecks(), d.temporal},
		{databaseChecks(), d.database},
		{llmChecks(cfg.Ask), d.llm},
		{processChecks(), d.process},
	}
	first := d.configuration()
	sheets := make([]*sheet, len(stages))
	var wg sync.WaitGroup
	for i, st := range stages {
		sheets[i] = &sheet{}
		if len(cfg.Mistakes) > 0 {
			sheets[i].failed = configurationCheck
			continue
		}
		wg.Go(func() { st.run(ctx, sheets[i]) })
	}
	wg.Wait()
	results := first
	for i, st := range stages {
		results = append(results, sheets[i].inOrder(st.checks)...)
	}
	return results
}

// ExitCode is that of the command: 0 if nothing is wrong, 1 for problems, 2 where
// the settings cannot be used, 3 where the only problem is that servers do not
// answer.
func ExitCode(results []Result) int {
	code := 0
	for _, r := range results {
		switch {
		case r.State != Problem:
		case r.Check == configurationCheck:
			return 2
		case !r.Unreachable:
			code = 1
		case code == 0:
			code = 3
		}
	}
	return code
}

const configurationCheck = "configuration"

// doctor is one run.
type doctor struct {
	cfg Config
	// announced is what Redis knows of the result store, once asked is closed.
	announced announcement
	asked     chan struct{}
}

// announcement is the store that running executors use, if that could be asked.
type announcement struct {
	id     string // empty: none is running
	failed string // the check of Redis that failed
}

// stage is a group of checks of which later ones need earlier ones.
type stage struct {
	checks []string // in the order of the report
	run    func(context.Context, *sheet)
}

// sheet collects the results of a stage.
type sheet struct {
	results []Result
	failed  string // the check that the rest would have needed
}

func (s *sheet) add(r Result) { s.results = append(s.results, r) }

func (s *sheet) ok(check, format string, args ...any) {
	s.add(Result{Check: check, State: OK, Found: fmt.Sprintf(format, args...)})
}

func (s *sheet) skip(check, format string, args ...any) {
	s.add(Result{Check: check, State: Skipped, Cause: fmt.Sprintf(format, args...)})
}

// stop adds a result without which nothing more can be found out.
func (s *sheet) stop(r Result) {
	s.add(r)
	s.failed = r.Check
}

// inOrder returns the results in the order of their checks, and one for each
// check that was not made.
func (s *sheet) inOrder(checks []string) []Result {
	var all []Result
	for _, check := range checks {
		n := len(all)
		for _, r := range s.results {
			if r.Check == check {
				all = append(all, r)
			}
		}
		if len(all) == n {
			all = append(all, Result{Check: check, State: Skipped, Cause: s.failed + " comes first"})
		}
	}
	return all
}

func (d *doctor) configuration() []Result {
	var results []Result
	for _, m := range d.cfg.Mistakes {
		results = append(results, Result{
			Check: configurationCheck, State: Problem, Found: m.Variable + " is not usable",
			Cause: m.Problem, Fix: []string{"correct " + m.Variable},
		})
	}
	for _, w := range d.cfg.Warnings {
		results = append(results, Result{Check: configurationCheck, State: Warning, Found: w})
	}
	if len(results) == 0 {
		results = []Result{{Check: configurationCheck, State: OK}}
	}
	first := &results[0]
	if first.State == OK {
		first.Found = fmt.Sprintf("%d settings are not defaults", len(d.cfg.Settings))
	}
	first.Settings = d.cfg.Settings
	return results
}

// streams are those of all roles.
func streams() []string {
	var names []string
	for _, r := range job.Roles() {
		names = append(names, r.Stream())
	}
	return names
}

// shell quotes a word where a shell would not take it as it is.
func shell(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+=,", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// command joins words to a line for a shell; empty ones are left out.
func command(words ...string) string {
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
	for i, w := range words {
		words[i] = shell(w)
	}
	return strings.Join(words, " ")
}

// list writes names as people do.
func list(names []string) string {
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}
