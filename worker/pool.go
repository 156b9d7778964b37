package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	sdk "go.temporal.io/sdk/worker"
)

// Pool runs the workers of one process.
type Pool struct {
	cfg        Config
	client     client.Client
	components []Component
	log        *slog.Logger
	fatal      func(error)
	newWorker  func(client.Client, string, sdk.Options) sdk.Worker
	options    []interceptor.WorkerInterceptor

	mu      sync.Mutex
	running []started
	ready   bool

	stopStarting context.CancelFunc
	starting     sync.WaitGroup
}

// linger is how long after the last stop the client must stay open.
const linger = time.Second

type started struct {
	Component
	sdk.Worker
}

// NewPool returns a pool of the components that cfg selects. fatal is called at
// most once per worker, when a worker cannot go on; interceptors apply to all.
func NewPool(cfg Config, c client.Client, components []Component, interceptors []interceptor.WorkerInterceptor, log *slog.Logger, fatal func(error)) (*Pool, error) {
	chosen, err := selected(cfg, components)
	if err != nil {
		return nil, err
	}
	return &Pool{
		cfg: cfg, client: c, components: chosen, log: log, fatal: fatal,
		newWorker: sdk.New, options: interceptors,
	}, nil
}

// Start begins to start the workers and returns. While Temporal cannot be
// reached it tries again every few seconds, and Check says why it is not ready;
// a namespace that does not exist is fatal.
func (p *Pool) Start() {
	ctx, cancel := context.WithCancel(context.Background()) // lives until Stop, not as long as a start hook
	p.stopStarting = cancel
	p.starting.Go(func() {
		for delay := 500 * time.Millisecond; ; delay = min(delay*2, 5*time.Second) {
			err := p.startAll()
			if err == nil {
				return
			}
			if _, missing := errors.AsType[*serviceerror.NamespaceNotFound](err); missing {
				p.fatal(fmt.Errorf("namespace does not exist on the Temporal server: create it or set TEMPORAL_NAMESPACE: %w", err))
				return
			}
			p.log.WarnContext(ctx, "Temporal is not reachable yet, trying again; check TEMPORAL_ADDRESS",
				slog.Any("error", err), slog.Duration("delay", delay))
			timer := time.NewTimer(delay)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		}
	})
}

// startAll starts every worker or none.
func (p *Pool) startAll() error {
	var up []started
	for _, c := range p.components {
		options := c.Options
		options.Interceptors = p.options
		options.OnFatalError = func(err error) {
			p.fatal(fmt.Errorf("worker of queue %s stopped: %w", c.Name, err))
		}
		w := p.newWorker(p.client, c.TaskQueue, options)
		c.Register(w)
		if err := w.Start(); err != nil {
			stopAll(up)
			return fmt.Errorf("start worker of queue %s: %w", c.Name, err)
		}
		up = append(up, started{c, w})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.ready = up, true
	for _, s := range up {
		p.log.Info("serving queue", slog.String("queue", s.TaskQueue), slog.Int("slots", s.Slots))
	}
	return nil
}

// Check returns an error while not all workers are polling.
func (p *Pool) Check(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ready {
		return errors.New("workers are not polling: Temporal is not reachable, check TEMPORAL_ADDRESS")
	}
	return nil
}

// Stop drains the role workers in parallel, then the workflows worker, whose
// tasks are what the drained calls report to.
func (p *Pool) Stop() {
	if p.stopStarting != nil {
		p.stopStarting()
	}
	p.starting.Wait()
	p.mu.Lock()
	running := p.running
	p.running, p.ready = nil, false
	p.mu.Unlock()

	var roles, workflows []started
	for _, s := range running {
		if s.Name == QueueNameWorkflows {
			workflows = append(workflows, s)
		} else {
			roles = append(roles, s)
		}
	}
	stopAll(roles)
	p.stopInTime(workflows)
	if len(roles) > 0 {
		// The SDK sends the reports of interrupted activities after Stop has
		// returned, and offers nothing to wait on.
		<-time.After(linger)
	}
}

// stopInTime stops workers, but does not wait longer than their stop timeout:
// the SDK waits that long for each kind of task in turn. What still runs then is
// a final step that cannot get through; another worker repeats it.
func (p *Pool) stopInTime(workers []started) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stopAll(workers)
	}()
	select {
	case <-stopped:
	case <-time.After(stopWorkflows):
		p.log.Warn("final steps are still running at the stop; they will be repeated elsewhere")
	}
}

func stopAll(workers []started) {
	var wg sync.WaitGroup
	for _, s := range workers {
		wg.Go(s.Stop)
	}
	wg.Wait()
}
