//go:build failpoints

package failpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// action is what a fault does.
type action string

const (
	actKill  action = "kill"
	actError action = "error"
	actSleep action = "sleep"
	actPanic action = "panic"
)

// defaultSleep is how long "sleep" lasts.
const defaultSleep = 10 * time.Second

// fault is one element of EXEC_FAIL.
type fault struct {
	first   int64
	onwards bool // every pass from the first on, not only that one
	action  action
	sleep   time.Duration
}

func (f fault) matches(pass int64) bool {
	return pass == f.first || f.onwards && pass > f.first
}

// plan is what is to happen in a process.
type plan struct {
	points map[Point]*site // only those at which something may happen
}

// site is a point with its faults in the order of EXEC_FAIL.
type site struct {
	passes atomic.Int64
	faults []fault
}

// InjectedError is what a point gives its caller.
type InjectedError struct{ Point Point }

// Error implements error.
func (e *InjectedError) Error() string { return "failpoint " + string(e.Point) + ": injected error" }

// parse reads EXEC_FAIL. Its error names every element it cannot use.
func parse(text string) (*plan, error) {
	p := &plan{points: make(map[Point]*site)}
	if strings.TrimSpace(text) == "" {
		return p, nil
	}
	var errs []error
	for element := range strings.SplitSeq(text, ",") {
		point, f, err := parseFault(strings.TrimSpace(element))
		if err != nil {
			errs = append(errs, fmt.Errorf("EXEC_FAIL: %q: %w", element, err))
			continue
		}
		if p.points[point] == nil {
			p.points[point] = &site{}
		}
		p.points[point].faults = append(p.points[point].faults, f)
	}
	return p, errors.Join(errs...)
}

func parseFault(text string) (Point, fault, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return "", fault{}, errors.New("must have the form <point>:<n>:<kill|error|panic|sleep[=duration]>")
	}
	point := Point(parts[0])
	if !slices.Contains(Points(), point) {
		return "", fault{}, fmt.Errorf("no such point, the points are %v", Points())
	}
	var f fault
	number, onwards := strings.CutSuffix(parts[1], "+")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 {
		return "", fault{}, errors.New("the pass must be a number from 1, or one followed by +")
	}
	f.first, f.onwards = n, onwards
	name, length, timed := strings.Cut(parts[2], "=")
	f.action, f.sleep = action(name), defaultSleep
	switch {
	case !slices.Contains([]action{actKill, actError, actSleep, actPanic}, f.action), timed && f.action != actSleep:
		return "", fault{}, errors.New("the action must be kill, error, panic, sleep or sleep=<duration>")
	case f.action == actKill && f.onwards:
		return "", fault{}, errors.New("a process can be killed once: give the pass without +")
	case timed:
		if f.sleep, err = time.ParseDuration(length); err != nil || f.sleep <= 0 {
			return "", fault{}, errors.New("sleep takes a duration such as 1500ms or 2m")
		}
	}
	return point, f, nil
}

// hit passes a point. Each fault of this pass is announced on out before it
// happens; kill does not return.
func (p *plan) hit(ctx context.Context, point Point, out io.Writer, kill func()) error {
	s := p.points[point]
	if s == nil {
		return nil
	}
	pass := s.passes.Add(1)
	for _, f := range s.faults {
		if !f.matches(pass) {
			continue
		}
		// One write, so that lines of concurrent passes do not mix. Where it
		// fails there is nobody to tell.
		_, _ = io.WriteString(out, fmt.Sprintf("failpoint %s pass %d: %s\n", point, pass, f.action))
		switch f.action {
		case actKill:
			kill()
		case actError:
			return &InjectedError{Point: point}
		case actPanic:
			panic(&InjectedError{Point: point})
		case actSleep:
			if err := sleep(ctx, f.sleep); err != nil {
				return err
			}
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
