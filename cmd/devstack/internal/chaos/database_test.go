//go:build chaos

package chaos

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// databaseFaults are those of the result store.
func databaseFaults() []fault {
	return []fault{
		{
			id: "F43", name: "database away when answers arrive",
			setup: setup{postgres: true},
			run: func(w *world) {
				s := w.system()
				jobs := w.hanging(8)
				w.toDatabase.cut()
				w.answerAll()
				w.withoutDatabase(s, jobs, 6*time.Second, func() {})
				w.toDatabase.join()
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F43b", name: "database and Redis away when answers arrive, Redis back first",
			setup: setup{postgres: true},
			run: func(w *world) {
				s := w.system()
				jobs := w.hanging(8)
				w.toDatabase.cut()
				w.workerRedis.cut()
				w.bridgeRedis.cut()
				w.answerAll()
				w.withoutDatabase(s, jobs, 6*time.Second, func() {
					w.workerRedis.join()
					w.bridgeRedis.join()
				})
				w.toDatabase.join()
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F43c", name: "database away when the executors start",
			setup: setup{postgres: true},
			run: func(w *world) {
				w.toDatabase.cut()
				jobs := w.load(8)
				s := w.launchSystem()
				s.bridge.logs("the result store cannot be opened")
				s.workflows.logs("the result store cannot be opened")
				w.pass(outage(time.Minute, 5*time.Second))
				require.Zero(w.T, w.LLM.Stats().Calls, "nobody knows yet whether these jobs were done before")
				w.toDatabase.join()
				w.heal()
				w.await(jobs...)
			},
		},
		{
			id: "F43d", name: "database frozen when answers arrive",
			setup: setup{postgres: true}, within: storeBackWithin,
			run: func(w *world) {
				s := w.system()
				jobs := w.hanging(8)
				w.freezeDatabase()
				w.answerAll()
				w.silentDatabase(s, jobs)
				w.thawDatabase()
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F43e", name: "half-open connections to the database when answers arrive: requests arrive, replies do not",
			setup: setup{postgres: true}, within: storeBackWithin,
			run: func(w *world) {
				s := w.system()
				// Connections are left over, of which the first tries use up only some: to
				// make a new one does not take for ever.
				w.settled(w.load(40)...)
				jobs := w.hangingOf("agent", 1)
				w.toDatabase.toxic(swallow, down, nil)
				w.answerAll()
				w.silentDatabase(s, jobs)
				w.toDatabase.heal()
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F44", name: "database commits, and the reply is lost",
			setup: setup{postgres: true},
			run: func(w *world) {
				w.system()
				const times = 4
				// A job's first outcome is one statement, committed with its own reply.
				w.toDatabase.cutAt(down, "INSERT 0 1", times)
				w.settled(w.load(8)...)
				require.Equal(w.T, times, w.toDatabase.wasCut(down))
				w.toDatabase.heal()

				// What changes a row is a transaction: here the mark that the dead letter
				// is written, and then the outcome of the second try.
				failed := make([]*jobRecord, 0, times)
				w.toDatabase.cutAt(down, "COMMIT", times)
				for range times {
					j := w.submit("agent", "!fail 400 x1")
					j.status, j.calls, j.updates, j.runs = "completed", 2, 2, 2
					failed = append(failed, j)
				}
				w.Wait("jobs have failed", func(ctx context.Context) error {
					if n := w.Redis.XLen(ctx, "jobs:agent:dead").Val(); n != times {
						return errors.New("not all")
					}
					return w.pendingOf(ctx, "agent", 0)
				})
				require.Equal(w.T, times, w.toDatabase.wasCut(down))
				w.toDatabase.heal()
				w.toDatabase.cutAt(down, "COMMIT", times)
				for _, j := range failed {
					require.NoError(w.T, w.add(w.T.Context(), j))
				}
				w.settled(failed...)
				require.Equal(w.T, times, w.toDatabase.wasCut(down))
				w.toDatabase.heal()
				w.heal()
			},
		},
		{
			id: "F45", name: "database turned read-only when answers arrive",
			setup: setup{postgres: true},
			run: func(w *world) {
				s := w.system()
				jobs := w.hanging(8)
				w.readOnly(true)
				w.answerAll()
				w.withoutDatabase(s, jobs, 6*time.Second, func() {})
				w.readOnly(false)
				w.heal()
				w.settled(jobs...)
			},
		},
		{
			id: "F45b", name: "disk of the SQLite file full when answers arrive",
			run: func(w *world) {
				s := w.system()
				w.settled(w.load(4)...)
				jobs := w.hanging(8)
				log, err := os.Stat(w.Database() + "-wal")
				require.NoError(w.T, err)
				w.limitFiles(s.workflows.Process, log.Size())
				w.answerAll()
				w.withoutDatabase(s, jobs, 6*time.Second, func() {})
				w.limitFiles(s.workflows.Process, unlimited)
				w.heal()
				w.settled(jobs...)
			},
		},
	}
}

// withoutDatabase waits until the answers have arrived that cannot be stored, lets
// five minutes pass, or twice short, and sees that nothing is told or acknowledged
// before the row.
func (w *world) withoutDatabase(s system, jobs []*jobRecord, short time.Duration, halfway func()) {
	w.T.Helper()
	w.calling(0)
	w.pass(outage(150*time.Second, short))
	halfway()
	w.pass(outage(150*time.Second, short))
	rows, err := w.statuses(w.T.Context())
	require.NoError(w.T, err)
	for _, j := range jobs {
		require.Empty(w.T, rows[j.key()], "%s was to have no row", j.key())
	}
	w.untold(s, jobs)
}

// storeBackWithin is how soon everything is at rest after a database that was silent:
// the next try comes within 15 s, and the rest takes a moment. A try that began before
// and was not given up would end after 30 s.
const storeBackWithin = 20 * time.Second

// silentDatabase waits until the answers have arrived that cannot be stored, lets time
// pass in which a database gives neither answers nor errors, and sees that nothing is
// told or acknowledged.
func (w *world) silentDatabase(s system, jobs []*jobRecord) {
	w.T.Helper()
	w.calling(0)
	w.pass(outage(time.Minute, 8*time.Second))
	w.untold(s, jobs)
}

// untold sees that all is as it was when the jobs' answers arrived.
func (w *world) untold(s system, jobs []*jobRecord) {
	w.T.Helper()
	require.Empty(w.T, w.withUpdate(jobs))
	pending := map[string]int64{}
	for _, j := range jobs {
		pending[j.role]++
	}
	for _, role := range roles {
		require.NoError(w.T, w.pendingOf(w.T.Context(), role, pending[role]))
	}
	for _, p := range []*process{s.bridge, s.workflows, s.roles} {
		select {
		case <-p.Done():
			require.Fail(w.T, "an executor ended", "%s", p.Name())
		default:
		}
	}
}

// freezeDatabase stops the server with all its processes, until thawDatabase.
func (w *world) freezeDatabase() {
	w.T.Helper()
	w.T.Cleanup(w.thawDatabase) // or nothing could end it
	server := w.Postgres.Process().Pid()
	require.NoError(w.T, syscall.Kill(server, syscall.SIGSTOP)) // before it makes more of them
	for _, pid := range children(w.T, server) {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // one may have ended
	}
}

func (w *world) thawDatabase() {
	w.T.Helper()
	select {
	case <-w.Postgres.Process().Done():
		return
	default:
	}
	server := w.Postgres.Process().Pid()
	for _, pid := range children(w.T, server) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	require.NoError(w.T, syscall.Kill(server, syscall.SIGCONT))
}

// children are the processes that another one has made.
func children(t *testing.T, parent int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var out []int
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// The name before it may hold anything: pid (name) state parent
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		require.NoError(t, err)
		out = append(out, pid)
	}
	return out
}

// readOnly lets the database refuse to write, or stops that.
func (w *world) readOnly(on bool) {
	w.T.Helper()
	ctx := w.T.Context()
	conn, err := pgx.Connect(ctx, w.Postgres.URL(w.Postgres.Address()))
	require.NoError(w.T, err)
	defer func() { require.NoError(w.T, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, "SET default_transaction_read_only = off")
	require.NoError(w.T, err)
	change := "ALTER DATABASE executor RESET default_transaction_read_only"
	if on {
		change = "ALTER DATABASE executor SET default_transaction_read_only = on"
	}
	_, err = conn.Exec(ctx, change)
	require.NoError(w.T, err)
	// It holds for new connections.
	_, err = conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	require.NoError(w.T, err)
}
