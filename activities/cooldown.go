package activities

import (
	"context"
	"sync"
	"time"
)

// SharedCoolDown spreads an endpoint's wish for patience over the processes.
type SharedCoolDown interface {
	SetCooldown(ctx context.Context, endpointKey string, d time.Duration) error
	Cooldown(ctx context.Context, endpointKey string) (time.Duration, error)
}

const (
	// defaultCoolDown is for a 429 that does not say how long to wait.
	defaultCoolDown = 5 * time.Second
	// probeWindow is how long others wait for a probe before the next is let
	// through.
	probeWindow = 5 * time.Second
	// sharedLook is how often the shared cool-down is looked up at most.
	sharedLook = time.Second
	// sharedBudget bounds a look-up: without Redis the process's own knowledge
	// has to do.
	sharedBudget = 500 * time.Millisecond
)

// CoolDown keeps calls away from an endpoint that answered 429 (or 503 with
// Retry-After) until the time it named. After that one call per process and
// window probes while the others wait on, so that a crowd does not run into the
// next refusal, and a slow probe holds nobody up for long.
type CoolDown struct {
	key    string
	shared SharedCoolDown // may be nil

	mu     sync.Mutex
	until  time.Time
	hot    bool      // refused, and not yet accepted again
	probed time.Time // when the probe under way was let through; zero without one
	looked time.Time
}

// NewCoolDown returns the cool-down of one endpoint. endpointKey names it in the
// shared store.
func NewCoolDown(endpointKey string, shared SharedCoolDown) *CoolDown {
	return &CoolDown{key: endpointKey, shared: shared}
}

// Enter asks to make a call. It returns coolDownError when the call has to wait,
// else a function that must be told the call's error.
func (c *CoolDown) Enter(ctx context.Context) (func(error), error) {
	c.look(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case now.Before(c.until):
		return nil, coolDownError{wait: c.until.Sub(now)}
	case c.hot && now.Sub(c.probed) < probeWindow:
		return nil, coolDownError{wait: time.Second, probed: true}
	}
	probe := c.hot
	if probe {
		c.probed = now
	}
	return func(err error) { c.leave(ctx, probe, err) }, nil
}

func (c *CoolDown) leave(ctx context.Context, probe bool, err error) {
	wait := coolDownOf(err)
	c.mu.Lock()
	if probe {
		c.probed = time.Time{}
	}
	switch {
	case wait > 0:
		c.hot = true
		if until := time.Now().Add(wait); until.After(c.until) {
			c.until = until
		}
	case probe && err == nil:
		// Only the probe's word counts: other calls began before the refusal.
		c.hot = false
	}
	c.mu.Unlock()
	if wait > 0 && c.shared != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sharedBudget)
		defer cancel()
		// Only spreads the word: each process learns it from its own 429 otherwise.
		_ = c.shared.SetCooldown(ctx, c.key, wait)
	}
}

func (c *CoolDown) look(ctx context.Context) {
	if c.shared == nil {
		return
	}
	c.mu.Lock()
	now := time.Now()
	due := now.Sub(c.looked) >= sharedLook
	if due {
		c.looked = now
	}
	c.mu.Unlock()
	if !due {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sharedBudget)
	defer cancel()
	wait, err := c.shared.Cooldown(ctx, c.key)
	if err != nil || wait <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hot = true
	if until := now.Add(wait); until.After(c.until) {
		c.until = until
	}
}
