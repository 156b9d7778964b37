package retry

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Pace bounds how fast many jobs are handled. All of them at once would only wait
// in queues, and an LLM that has just recovered would see them come.
type Pace struct {
	Rate     float64 // jobs begun a second
	Parallel int     // jobs in hand at a time
}

// perJob bounds the time for one job: what takes longer is an outage.
const perJob = 30 * time.Second

// each calls do for 0 to n-1, beginning them in that order, and report after each
// that has no error. It begins none after ctx has ended or do has returned an
// error, finishes those in hand, and returns the first error. do gets a context
// that ends with perJob and not with ctx. report is not called twice at a time.
func (p Pace) each(ctx context.Context, n int, do func(ctx context.Context, i int) error, report func(i int)) error {
	begin, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	limiter := rate.NewLimiter(rate.Limit(p.Rate), 1)
	var reporting sync.Mutex
	var group errgroup.Group
	group.SetLimit(max(1, p.Parallel))
	for i := range n {
		if limiter.Wait(begin) != nil {
			break
		}
		group.Go(func() error {
			if begin.Err() != nil {
				return nil // it ended while this one waited for its turn
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), perJob)
			defer cancel()
			if err := do(ctx, i); err != nil {
				stop(err)
				return err
			}
			reporting.Lock()
			defer reporting.Unlock()
			report(i)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
