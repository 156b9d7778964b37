package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/retry"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/term"
)

// maxCounted is how many dead letters of a stream are looked at to count the
// unresolved ones.
const maxCounted = 1000

// recountEvery is how often they are counted while watching: each time they are
// read, and the database is asked.
const recountEvery = 15 * time.Second

// streamInfo is what is printed of a role's stream.
type streamInfo struct {
	Role    job.Role `json:"role"`
	Stream  string   `json:"stream"`
	Length  int64    `json:"length"`
	Unread  *int64   `json:"unread"`  // null: Redis cannot tell
	Pending int64    `json:"pending"` // read, and their job has not ended
	// OldestPendingMS is the age of the oldest pending entry.
	OldestPendingMS int64          `json:"oldestPendingMs"`
	DeadLetters     deadInfo       `json:"deadLetters"`
	Consumers       []consumerInfo `json:"consumers"`
}

type deadInfo struct {
	Total int64 `json:"total"`
	// Unresolved is counted over the newest Looked ones; null without a database.
	Unresolved *int `json:"unresolved"`
	Looked     int  `json:"looked"`
}

type consumerInfo struct {
	Name    string `json:"name"`
	Pending int64  `json:"pending"`
	IdleMS  int64  `json:"idleMs"`
	Alive   bool   `json:"alive"`
}

func newStreams() *cobra.Command {
	var (
		watch    bool
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use:   "streams",
		Short: "Show how much waits in the streams, and who works on it",
		Long: `Show for each role how many entries its stream holds, how many of them nobody has
read yet, how many are in flight (read, and their job has not ended), how old the
oldest of those is, its dead letters, and the consumers.

Length only grows: Redis keeps acknowledged entries until somebody trims the
stream. "?" says that Redis cannot tell how many are unread, because entries were
deleted. A consumer that is not alive gave no sign of life for 10 seconds; others
take over what it has in flight.`,
		Example: `  executor streams
  executor streams --watch
  executor streams -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return &exitError{exitUsage, errors.New("--interval must be 100ms at least")}
			}
			o, err := newOperator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			if watch && o.out.Format() == term.JSON {
				return &exitError{exitUsage, errors.New("--watch prints one object after the other: use -o jsonl")}
			}
			return showStreams(cmd, o, watch, interval)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again and again until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "with --watch: how often")
	outputFlag(cmd)
	return cmd
}

func showStreams(cmd *cobra.Command, o *operator, watch bool, interval time.Duration) error {
	ctx := cmd.Context()
	c, err := o.redis(ctx)
	if err != nil {
		return err
	}
	survey := &survey{redis: c, warn: func(err error) {
		fmt.Fprintln(cmd.ErrOrStderr(), "unresolved dead letters are not counted: "+err.Error())
	}}
	if rows, err := o.rows(ctx); err == nil {
		survey.rows = rows
	} else {
		// What waits is in Redis alone; that there is no store yet must not hide it.
		survey.warn(err)
	}
	for {
		infos, err := survey.take(ctx, time.Now())
		switch {
		case ctx.Err() != nil && watch:
			return nil
		case err != nil:
			return unreachable(err)
		}
		if watch && o.out.Terminal() {
			// Home, and clear what is below: no flicker as with clearing first.
			if _, err := io.WriteString(cmd.OutOrStdout(), "\x1b[H\x1b[J"); err != nil {
				return err
			}
		}
		if err := printStreams(o.out, infos); err != nil || !watch {
			return err
		}
		timer := time.NewTimer(interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// survey reads the numbers of all streams.
type survey struct {
	redis *stream.Client
	rows  retry.Rows // nil: no database, or no right to read dead letters
	warn  func(error)
	at    time.Time // of the last count of dead letters
	dead  map[job.Role]deadInfo
}

func (s *survey) take(ctx context.Context, now time.Time) ([]streamInfo, error) {
	if s.dead == nil || now.Sub(s.at) >= recountEvery {
		err := s.countDead(ctx, now)
		if errors.Is(err, stream.ErrDenied) {
			s.warn(err)
			s.rows = nil
			err = s.countDead(ctx, now)
		}
		if err != nil {
			return nil, err
		}
		s.at = now
	}
	infos := make([]streamInfo, 0, len(job.Roles()))
	for _, role := range job.Roles() {
		stats, err := s.redis.Stats(ctx, role.Stream())
		if err != nil {
			return nil, err
		}
		consumers, err := s.redis.Consumers(ctx, role.Stream())
		if err != nil {
			return nil, err
		}
		info := streamInfo{
			Role: role, Stream: role.Stream(), Length: stats.Length, Pending: stats.Pending,
			OldestPendingMS: stats.OldestPending.Milliseconds(), DeadLetters: s.dead[role], Consumers: make([]consumerInfo, 0, len(consumers)),
		}
		info.DeadLetters.Total = stats.DeadLength
		if stats.Lag >= 0 {
			info.Unread = &stats.Lag
		}
		for _, consumer := range consumers {
			info.Consumers = append(info.Consumers, consumerInfo{
				Name: consumer.Name, Pending: consumer.Pending, IdleMS: consumer.Idle.Milliseconds(), Alive: consumer.Alive,
			})
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// countDead looks through the newest dead letters of each stream.
func (s *survey) countDead(ctx context.Context, now time.Time) error {
	counts := make(map[job.Role]deadInfo)
	if s.rows != nil {
		for _, role := range job.Roles() {
			var d deadInfo
			unresolved := 0
			err := new(letterFlags).lettersOf(ctx, s.redis, s.rows, role, now, func(l retry.Letter) bool {
				d.Looked++
				if !l.Resolved {
					unresolved++
				}
				return d.Looked < maxCounted
			})
			if err != nil {
				return err
			}
			d.Unresolved = &unresolved
			counts[role] = d
		}
	}
	s.dead = counts
	return nil
}

func printStreams(out *term.Printer, infos []streamInfo) error {
	err := term.List(out, infos,
		term.Column[streamInfo]{Head: "role", Cell: func(s streamInfo) string { return string(s.Role) }},
		term.Column[streamInfo]{Head: "length", Cell: func(s streamInfo) string { return count(s.Length) }, Right: true},
		term.Column[streamInfo]{Head: "unread", Cell: streamInfo.unread, Right: true},
		term.Column[streamInfo]{Head: "in flight", Cell: func(s streamInfo) string { return count(s.Pending) }, Right: true},
		term.Column[streamInfo]{Head: "oldest", Cell: streamInfo.oldest, Right: true},
		term.Column[streamInfo]{Head: "dead letters", Cell: func(s streamInfo) string { return count(s.DeadLetters.Total) }, Right: true},
		term.Column[streamInfo]{Head: "unresolved", Cell: streamInfo.unresolved, Right: true, Color: streamInfo.unresolvedColor},
		term.Column[streamInfo]{Head: "consumers", Cell: streamInfo.alive, Right: true, Color: streamInfo.aliveColor},
	)
	if err != nil || out.Format() != term.Table {
		return err
	}
	type line struct {
		role job.Role
		consumerInfo
	}
	var lines []line
	for _, info := range infos {
		for _, c := range info.Consumers {
			lines = append(lines, line{info.Role, c})
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if err := term.Title(out, "Consumers"); err != nil {
		return err
	}
	return term.List(out, lines,
		term.Column[line]{Head: "role", Cell: func(l line) string { return string(l.role) }},
		term.Column[line]{Head: "name", Cell: func(l line) string { return l.Name }},
		term.Column[line]{Head: "in flight", Cell: func(l line) string { return count(l.Pending) }, Right: true},
		term.Column[line]{Head: "idle", Cell: func(l line) string { return term.Short(time.Duration(l.IdleMS) * time.Millisecond) }, Right: true},
		term.Column[line]{
			Head: "alive",
			Cell: func(l line) string {
				if l.Alive {
					return "yes"
				}
				return "no"
			},
			Color: func(l line) term.Color {
				if l.Alive {
					return term.Good
				}
				return term.Bad
			},
		},
	)
}

func count(n int64) string { return strconv.FormatInt(n, 10) }

func (s streamInfo) unread() string {
	if s.Unread == nil {
		return "?"
	}
	return count(*s.Unread)
}

func (s streamInfo) oldest() string {
	if s.OldestPendingMS == 0 {
		return ""
	}
	return term.Short(time.Duration(s.OldestPendingMS) * time.Millisecond)
}

func (s streamInfo) unresolved() string {
	switch {
	case s.DeadLetters.Unresolved == nil:
		return "?"
	case int64(s.DeadLetters.Looked) < s.DeadLetters.Total:
		return strconv.Itoa(*s.DeadLetters.Unresolved) + "+"
	default:
		return strconv.Itoa(*s.DeadLetters.Unresolved)
	}
}

func (s streamInfo) unresolvedColor() term.Color {
	if s.DeadLetters.Unresolved != nil && *s.DeadLetters.Unresolved > 0 {
		return term.Bad
	}
	return term.Plain
}

// alive is how many consumers are, of how many there are.
func (s streamInfo) alive() string {
	n := 0
	for _, c := range s.Consumers {
		if c.Alive {
			n++
		}
	}
	if n == len(s.Consumers) {
		return strconv.Itoa(n)
	}
	return strconv.Itoa(n) + " of " + strconv.Itoa(len(s.Consumers))
}

func (s streamInfo) aliveColor() term.Color {
	for _, c := range s.Consumers {
		if !c.Alive && c.Pending > 0 {
			return term.Bad
		}
	}
	return term.Plain
}
