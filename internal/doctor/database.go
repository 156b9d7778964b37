package doctor

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/nodpt/executor/internal/store"
)

const (
	databaseConnect  = "database.connect"
	databaseTables   = "database.tables"
	databaseIdentity = "database.identity"
	databaseWrite    = "database.write"
	databaseClock    = "database.clock"
)

func databaseChecks() []string {
	return []string{databaseConnect, databaseTables, databaseIdentity, databaseWrite, databaseClock}
}

// clockLimit is the difference between two clocks that is worth a word: rows hold
// times of both.
const clockLimit = 5 * time.Second

func (d *doctor) database(ctx context.Context, s *sheet) {
	attached, err := store.Attach(ctx, d.cfg.Store)
	var fixed string
	if err != nil && store.FaultOf(err) == store.FaultNoTables {
		s.ok(databaseConnect, "%s", store.Redact(d.cfg.Store.URL))
		attached, fixed = d.noTables(ctx, s)
		if attached == nil {
			return
		}
	} else if err != nil {
		s.stop(d.noDatabase(err))
		return
	} else {
		s.ok(databaseConnect, "%s", attached.Describe())
	}
	defer func() { _ = attached.Close() }()
	s.add(Result{Check: databaseTables, State: OK, Found: "the tables of the executor are there", Fixed: fixed})
	d.identity(ctx, s, attached)
	if err := attached.Writable(ctx); err != nil {
		s.add(d.notWritable(err))
	} else {
		s.ok(databaseWrite, "rows can be written")
	}
	d.clock(ctx, s, attached)
}

// noTables is a database no executor has used. It creates the tables where it is
// told to put things right, and where that cannot make a second store beside one
// that is in use.
func (d *doctor) noTables(ctx context.Context, s *sheet) (*store.Store, string) {
	r := Result{
		Check: databaseTables, State: Warning, Found: "the database holds no tables of an executor",
		Cause: "no executor has used it yet, or " + d.cfg.Variables.DatabaseName + " names another one than theirs",
		Fix:   []string{"executor doctor --fix", "or start an executor, which creates them: executor run"},
	}
	known := d.heard(ctx)
	switch {
	case known.id != "":
		r.State = Problem
		r.Cause = "the executors that run on this Redis use another database; a second one would forget what the first has done"
		r.Fix = []string{"set " + d.cfg.Variables.DatabaseName + " to the database of the running executors"}
	case d.cfg.Fix && known.failed != "":
		r.Cause += "; nothing was created, because Redis could not be asked whether another one is in use (" + known.failed + ")"
	case d.cfg.Fix:
		opened, err := store.Open(ctx, d.cfg.Store, nil)
		if err == nil {
			return opened, "created the tables"
		}
		r.State = Problem
		r.Cause = "they could not be created: " + storeReason(err)
		r.Fix = []string{d.grant(err)}
	}
	s.stop(r)
	return nil, ""
}

// heard waits for what Redis knows of the result store.
func (d *doctor) heard(ctx context.Context) announcement {
	select {
	case <-d.asked:
		return d.announced
	case <-ctx.Done():
		return announcement{failed: redisLogin}
	}
}

func (d *doctor) identity(ctx context.Context, s *sheet, attached *store.Store) {
	known := d.heard(ctx)
	switch {
	case known.failed != "":
		s.skip(databaseIdentity, "%s comes first: running executors announce their database in Redis", known.failed)
	case known.id == "":
		s.ok(databaseIdentity, "store %s; no executor is running that could use another one", attached.UUID())
	case known.id == attached.UUID():
		s.ok(databaseIdentity, "store %s, the one that the running executors use", attached.UUID())
	default:
		s.add(Result{
			Check: databaseIdentity, State: Problem,
			Found: "this database is store " + attached.UUID() + ", the running executors use " + known.id,
			Cause: "two databases on one Redis: each would forget what the other has done, so an executor with these settings stops with exit code 2",
			Fix:   []string{"set " + d.cfg.Variables.DatabaseName + " to the database of the running executors, or stop them half a minute before others start"},
		})
	}
}

// storeReason is what the store says without the hint that ends its errors.
func storeReason(err error) string {
	e, ok := errors.AsType[*store.Error](err)
	if !ok {
		return err.Error()
	}
	if e.Code != "" {
		return e.Reason + " [" + e.Code + "]"
	}
	return e.Reason
}

func (d *doctor) noDatabase(err error) Result {
	v := d.cfg.Variables
	r := Result{
		Check: databaseConnect, State: Problem,
		Found: "no connection to " + store.Redact(d.cfg.Store.URL), Cause: storeReason(err),
	}
	switch store.FaultOf(err) {
	case store.FaultName:
		r.Unreachable = true
		r.Fix = []string{"correct the host in " + v.DatabaseHost}
	case store.FaultUnreachable:
		r.Unreachable = true
		r.Fix = []string{"start the database server, or correct host and port in " + v.DatabaseHost}
		if strings.HasPrefix(d.cfg.Store.URL, "sqlite:") && !errors.Is(err, context.DeadlineExceeded) {
			r.Fix = []string{"correct the path in " + v.DatabaseHost + ", or make the file readable and writable for this user"}
			r.Unreachable = false
		}
	case store.FaultLogin:
		r.Fix = []string{"correct user and password in " + v.DatabaseLogin}
	case store.FaultNoDatabase:
		r.Fix = []string{createDatabase(d.cfg.Store.URL), "or correct the name in " + v.DatabaseName}
	case store.FaultRights, store.FaultReadOnly:
		r.Fix = []string{d.grant(err)}
	default:
		r.Fix = []string{"correct " + v.DatabaseName}
	}
	return r
}

// createDatabase is the command that creates the database a URL names.
func createDatabase(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "create the database"
	}
	name, user := strings.TrimPrefix(u.Path, "/"), u.User.Username()
	option := func(flag, value string) []string {
		if value == "" {
			return nil
		}
		return []string{flag, value}
	}
	if u.Scheme == "mysql" || u.Scheme == "mariadb" {
		words := append([]string{"mysql"}, option("-h", u.Hostname())...)
		words = append(words, option("-P", u.Port())...)
		words = append(append(words, option("-u", user)...), "-p")
		return command(append(words, "-e", "CREATE DATABASE `"+name+"` CHARACTER SET utf8mb4")...)
	}
	words := append([]string{"createdb"}, option("-h", u.Hostname())...)
	words = append(words, option("-p", u.Port())...)
	words = append(words, option("-U", user)...)
	return command(append(words, "-E", "UTF8", "-T", "template0", name)...)
}

func (d *doctor) notWritable(err error) Result {
	r := Result{
		Check: databaseWrite, State: Problem, Found: "rows cannot be written", Cause: storeReason(err),
		Fix: []string{d.grant(err)},
	}
	r.Unreachable = store.FaultOf(err) == store.FaultUnreachable
	return r
}

// grant is what to do about an error that is about rights.
func (d *doctor) grant(err error) string {
	v := d.cfg.Variables
	switch store.FaultOf(err) {
	case store.FaultRights:
		return "give the user in " + v.DatabaseLogin + " the rights listed in docs/security.md"
	case store.FaultReadOnly:
		if strings.HasPrefix(d.cfg.Store.URL, "sqlite:") {
			return "make the file and its directory writable for this user"
		}
		return "name a server in " + v.DatabaseHost + " that takes writes: this one is read-only or a standby"
	default:
		return "see the log of the database, and " + v.DatabaseName
	}
}

func (d *doctor) clock(ctx context.Context, s *sheet, attached *store.Store) {
	ahead, precision, found, err := attached.Clock(ctx)
	switch {
	case err != nil:
		s.add(Result{
			Check: databaseClock, State: Warning, Found: "the clock of the database cannot be read", Cause: storeReason(err),
			Fix: []string{"see the log of the database"},
		})
	case !found:
		s.ok(databaseClock, "SQLite uses the clock of this machine")
	case ahead.Abs() > clockLimit+precision:
		direction := "ahead of"
		if ahead < 0 {
			direction = "behind"
		}
		s.add(Result{
			Check: databaseClock, State: Warning,
			Found: "the clock of the database is " + ahead.Abs().Round(time.Second).String() + " " + direction + " that of this machine",
			Cause: "times in rows cannot be compared with times in logs then", Fix: []string{"synchronise both with NTP: timedatectl set-ntp true"},
		})
	default:
		s.ok(databaseClock, "the clock of the database and that of this machine agree")
	}
}
