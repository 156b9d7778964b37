package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// Sizes of a job, in bytes.
const (
	taskBytes    = 200
	payloadBytes = 1000
	answerBytes  = 1000
)

// lane is one way jobs take: where they are added, and how many are outstanding.
type lane struct {
	stream, role string
	outstanding  int
}

// loop keeps jobs outstanding: each that is answered is followed by another one.
type loop struct {
	w       *world
	lanes   []lane
	updates string
	// submit adds a job; nil: by XADD to the lane's stream.
	submit func(ctx context.Context, l lane, job contestant.Job) error
	// patience is how long nothing may be answered before jobs count as lost; 0
	// means lossPatience.
	patience time.Duration
}

// window is when a loop measures: after a while to warm up, for a while.
type window struct{ warmup, measure time.Duration }

// load is what came of a loop or of the engine's own.
type load struct {
	Jobs      int
	Seconds   float64
	Latencies []time.Duration // sorted; from before the job is added to when its update is read
	Last      string          // id of one of the jobs
}

func (l load) rate() float64 { return float64(l.Jobs) / l.Seconds }

// pending is a job that was submitted.
type pending struct {
	lane int
	at   time.Time
}

// run submits jobs until the window has passed, and returns when all that were
// outstanding are answered.
func (l *loop) run(ctx context.Context, win window) (load, error) {
	reader := reader{redis: l.w.redis, stream: l.updates}
	if err := reader.skip(ctx); err != nil {
		return load{}, err
	}
	waiting := map[string]pending{}
	prefix := fmt.Sprintf("%x", time.Now().UnixNano())
	n := 0
	add := func(i int) error {
		n++
		job := contestant.NewJob(fmt.Sprintf("%s-%d", prefix, n), taskBytes, payloadBytes)
		waiting[job.ID] = pending{lane: i, at: time.Now()}
		return l.add(ctx, l.lanes[i], job)
	}
	began := time.Now()
	from, to := began.Add(win.warmup), began.Add(win.warmup+win.measure)
	for i, lane := range l.lanes {
		for range lane.outstanding {
			if err := add(i); err != nil {
				return load{}, err
			}
		}
	}
	out := load{Seconds: win.measure.Seconds()}
	var last time.Time
	for len(waiting) > 0 {
		ids, err := reader.next(ctx)
		if err != nil {
			return load{}, err
		}
		now := time.Now()
		if len(ids) == 0 && now.Sub(cmpTime(last, began)) > cmp.Or(l.patience, lossPatience) {
			return load{}, fmt.Errorf("%d jobs were not answered, one of them %s", len(waiting), anyKey(waiting))
		}
		for _, id := range ids {
			p, ours := waiting[id]
			if !ours {
				continue
			}
			last = now
			delete(waiting, id)
			if now.After(from) && now.Before(to) {
				out.Jobs++
				out.Last = id
				out.Latencies = append(out.Latencies, now.Sub(p.at))
			}
			if now.Before(to) {
				if err := add(p.lane); err != nil {
					return load{}, err
				}
			}
		}
	}
	if out.Jobs == 0 {
		return load{}, errors.New("no job ended within the window")
	}
	slices.Sort(out.Latencies)
	return out, nil
}

const lossPatience = time.Minute

func cmpTime(a, b time.Time) time.Time {
	if a.IsZero() {
		return b
	}
	return a
}

func anyKey(m map[string]pending) string {
	for k := range m {
		return k
	}
	return ""
}

func (l *loop) add(ctx context.Context, lane lane, job contestant.Job) error {
	if l.submit != nil {
		return l.submit(ctx, lane, job)
	}
	return l.w.redis.XAdd(ctx, &redis.XAddArgs{Stream: lane.stream, Values: job.Fields()}).Err()
}

// reader follows a stream of updates.
type reader struct {
	redis  *redis.Client
	stream string
	last   string
}

// skip goes to the end of the stream.
func (r *reader) skip(ctx context.Context) error {
	newest, err := r.redis.XRevRangeN(ctx, r.stream, "+", "-", 1).Result()
	if err != nil {
		return err
	}
	r.last = "0-0"
	if len(newest) > 0 {
		r.last = newest[0].ID
	}
	return nil
}

// next returns the ids of the jobs of new updates, none after some time without.
func (r *reader) next(ctx context.Context) ([]string, error) {
	streams, err := r.redis.XRead(ctx, &redis.XReadArgs{Streams: []string{r.stream, r.last}, Count: 1000, Block: 500 * time.Millisecond}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, m := range streams[0].Messages {
		r.last = m.ID
		id, _ := m.Values["JobId"].(string)
		if kind := m.Values["Type"]; kind != "result" {
			return nil, fmt.Errorf("job %s ended with an update of type %v", id, kind)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// engineLoad lets the engine run its own loop.
func (w *world) engineLoad(ctx context.Context, m *member, concurrency int, win window) (load, error) {
	var answer contestant.LoadResult
	err := request(ctx, http.MethodPost, m.http+"/load", contestant.Load{
		Concurrency: concurrency, WarmupMS: int(win.warmup.Milliseconds()), MeasureMS: int(win.measure.Milliseconds()),
		TaskBytes: taskBytes, PayloadBytes: payloadBytes,
	}, &answer)
	if err != nil {
		return load{}, err
	}
	out := load{Jobs: answer.Jobs, Seconds: answer.Seconds, Last: answer.Sample}
	for _, us := range answer.Latencies {
		out.Latencies = append(out.Latencies, time.Duration(us)*time.Microsecond)
	}
	slices.Sort(out.Latencies)
	return out, nil
}

// sampled runs something for a window, and samples at both ends of the measuring
// part of it.
func (w *world) sampled(ctx context.Context, m *member, win window, run func() (load, error)) (load, sample, sample, error) {
	type taken struct {
		sample
		err error
	}
	at := func(d time.Duration) <-chan taken {
		out := make(chan taken, 1)
		go func() {
			select {
			case <-time.After(d):
				s, err := w.take(ctx, m)
				out <- taken{s, err}
			case <-ctx.Done():
				out <- taken{err: ctx.Err()}
			}
		}()
		return out
	}
	first, second := at(win.warmup), at(win.warmup+win.measure)
	got, err := run()
	if err != nil {
		return load{}, sample{}, sample{}, err
	}
	before, after := <-first, <-second
	return got, before.sample, after.sample, errors.Join(before.err, after.err)
}

// settle waits until what was begun is finished: no entry of these streams is
// pending, and the Temporal server has next to nothing left to do.
func (w *world) settle(ctx context.Context, group string, streams ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for _, stream := range streams {
		for {
			summary, err := w.redis.XPending(ctx, stream, group).Result()
			if err != nil {
				return fmt.Errorf("pending entries of %s: %w", stream, err)
			}
			if summary.Count == 0 {
				break
			}
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return fmt.Errorf("%d entries of %s stay pending: %w", summary.Count, stream, err)
			}
		}
	}
	pid := w.pids()[Temporal]
	for {
		before, err := stat(pid)
		if err != nil {
			return err
		}
		if err := pause(ctx, settleWindow); err != nil {
			return fmt.Errorf("the Temporal server does not come to rest: %w", err)
		}
		after, err := stat(pid)
		if err != nil {
			return err
		}
		if after.CPUTime()-before.CPUTime() <= settleShare*settleWindow.Seconds() {
			return nil
		}
	}
}

const (
	settleWindow = 300 * time.Millisecond
	settleShare  = 0.15 // of one core; timers and idle polls stay below
)

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
