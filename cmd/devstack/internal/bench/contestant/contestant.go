// Package contestant holds what the benchmark compares the executor with: the
// bare engine, which is the ceiling; the straightforward design on the same
// engine; the predecessor; and a job queue without an engine. It exists so that
// a figure of the executor can be read: all of them do the same jobs, on the same
// machine, in the same run.
//
// Where a contestant leaves a choice, it is made in the contestant's favour, so
// that the comparison is about the design and not about care.
package contestant

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Names of the contestants.
const (
	Engine = "engine" // one workflow with one empty activity per job: see engine
	Eager  = "eager"  // the same, and workflows start eagerly
	Floor  = "floor"  // as engine, and nobody waits for its result
	Naive  = "naive"  // an activity for each step: see naive
	Old    = "old"    // the predecessor, one job at a time: see old
	Queue  = "queue"  // asynq, nothing durable but the row: see queue
)

// Names returns the names of all contestants.
func Names() []string { return []string{Engine, Eager, Floor, Naive, Old, Queue} }

// defaultConcurrency is what the executor's settings call unlimited.
const defaultConcurrency = 1000

// Config says which contestant to run, and where everything is.
type Config struct {
	Name      string `json:"name"`      // one of Names
	Temporal  string `json:"temporal"`  // host:port; engine, naive
	Namespace string `json:"namespace"` // empty: default
	Redis     string `json:"redis"`     // host:port; all but engine
	LLM       string `json:"llm"`       // full URL of the chat endpoint; all but engine
	Database  string `json:"database"`  // path of the SQLite file; naive, queue
	HTTP      string `json:"http"`      // host:port to serve on
	// Concurrency is how many jobs are worked on at once, 0 means 1000. The
	// predecessor ignores it.
	Concurrency int `json:"concurrency"`
	// AnswerBytes is the length of the answer of the engine's activity: give it the
	// length of the LLM's answers to the others.
	AnswerBytes int `json:"answer_bytes"`
}

// contestant works on jobs until ctx ends, which is no error. It calls the site's
// ready when it does.
type contestant func(ctx context.Context, cfg Config, s *site) error

// Run runs one contestant until ctx ends, or until it cannot go on.
//
// Over HTTP it answers GET /ready with 200 once it takes jobs, GET /memory with a
// Memory, and the engine POST /load, which takes a Load and gives a LoadResult.
func Run(ctx context.Context, cfg Config) error {
	run, err := cfg.contestant()
	if err != nil {
		return err
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = defaultConcurrency
	}
	s, err := listen(ctx, cfg.HTTP)
	if err != nil {
		return fmt.Errorf("contestant %s: %w", cfg.Name, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.serve(ctx) })
	group.Go(func() error {
		err := run(ctx, cfg, s)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // what the end of the context interrupts is no failure
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("contestant %s: %w", cfg.Name, err)
	}
	return nil
}

// contestant returns the one that is named, or all that is wrong with the
// configuration.
func (c Config) contestant() (contestant, error) {
	type setting struct{ name, value string }
	var (
		temporal = setting{"temporal", c.Temporal}
		redis    = setting{"redis", c.Redis}
		llm      = setting{"llm", c.LLM}
		database = setting{"database", c.Database}
	)
	var run contestant
	needed := []setting{{"http", c.HTTP}}
	switch c.Name {
	case Engine, Eager, Floor:
		run, needed = runEngine, append(needed, temporal)
	case Naive:
		run, needed = runNaive, append(needed, temporal, redis, llm, database)
	case Old:
		run, needed = runOld, append(needed, redis, llm)
	case Queue:
		run, needed = runQueue, append(needed, redis, llm, database)
	default:
		return nil, fmt.Errorf("contestant %q: there are %v", c.Name, Names())
	}
	var mistakes []error
	for _, s := range slices.DeleteFunc(needed, func(s setting) bool { return s.value != "" }) {
		mistakes = append(mistakes, fmt.Errorf("contestant %s: %s is not set", c.Name, s.name))
	}
	return run, errors.Join(mistakes...)
}
