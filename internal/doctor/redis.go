package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/term"
)

const (
	redisConnect     = "redis.connect"
	redisLogin       = "redis.login"
	redisVersion     = "redis.version"
	redisRole        = "redis.role"
	redisRights      = "redis.rights"
	redisPersistence = "redis.persistence"
	redisEviction    = "redis.eviction"
	redisGroups      = "redis.groups"
	redisBridges     = "redis.bridges"
	redisBacklog     = "redis.backlog"
)

func redisChecks() []string {
	return []string{
		redisConnect, redisLogin, redisVersion, redisRole, redisRights, redisPersistence, redisEviction,
		redisGroups, redisBridges, redisBacklog,
	}
}

// minRedis is the oldest major version whose streams can do what the bridge asks.
const minRedis = 7

// redisPatient is one Redis server.
type redisPatient struct {
	*doctor
	*sheet
	conn   stream.Connection
	client *stream.Client
}

func (d *doctor) redis(ctx context.Context, s *sheet) {
	d.announced = announcement{failed: redisConnect}
	defer close(d.asked)

	conn, err := stream.ParseConnection(d.cfg.Redis.Connection)
	if err == nil {
		err = stream.Dial(ctx, d.cfg.Redis)
	}
	p := &redisPatient{doctor: d, sheet: s, conn: conn}
	if err != nil {
		s.stop(p.dialed(err))
		return
	}
	secure := "without TLS"
	if conn.TLS {
		secure = "with TLS"
	}
	s.ok(redisConnect, "%s answers, %s", conn.Addr, secure)

	if p.client, err = stream.Open(d.cfg.Redis, nil); err == nil {
		defer func() { _ = p.client.Close() }() //nolint:contextcheck // closing takes no time
		err = p.client.Ping(ctx)
	}
	if err != nil {
		d.announced.failed = redisLogin
		s.stop(p.loggedIn(err))
		return
	}
	s.ok(redisLogin, "as user %s, database %d", p.user(), conn.DB)

	p.server(ctx)
	p.rights(ctx)
	p.groups(ctx)
	p.backlog(ctx)
	d.announced = announcement{}
	if d.announced.id, err = p.client.AnnouncedStore(ctx); err != nil {
		d.announced.failed = redisRights
	}
}

func (p *redisPatient) user() string { return cmp.Or(p.conn.Username, "default") }

// cli is a redis-cli command for somebody who may administer the server.
func (p *redisPatient) cli(args ...string) string {
	host, port, _ := net.SplitHostPort(p.conn.Addr)
	words := []string{"redis-cli"}
	if host != "localhost" && host != "127.0.0.1" {
		words = append(words, "-h", host)
	}
	if port != "6379" {
		words = append(words, "-p", port)
	}
	if p.conn.TLS {
		words = append(words, "--tls")
		if p.cfg.Redis.CAFile != "" {
			words = append(words, "--cacert", p.cfg.Redis.CAFile)
		}
	}
	switch {
	case p.conn.Username != "" && p.conn.Username != "default":
		words = append(words, "--user", "admin", "--askpass") // the executor's user may not
	case p.conn.Password != "":
		words = append(words, "--askpass")
	}
	return command(append(words, args...)...)
}

func (p *redisPatient) dialed(err error) Result {
	v := p.cfg.Variables.Redis
	r := Result{Check: redisConnect, State: Problem, Found: "no connection to " + p.conn.Addr, Cause: err.Error()}
	failed, ok := errors.AsType[*stream.DialError](err)
	if !ok {
		r.Found, r.Fix = "no connection", []string{"correct " + v}
		return r
	}
	switch failed.Fault {
	case stream.FaultName:
		r.Unreachable = true
		r.Fix = []string{"correct the host in " + v}
	case stream.FaultDial:
		r.Unreachable = true
		r.Fix = []string{"start Redis there, or correct host and port in " + v}
	case stream.FaultTLS:
		r.Fix = []string{"name the port of the server that speaks TLS in " + v + ", or ask for none: redis:// in place of rediss://, or without ssl=true"}
	case stream.FaultCertificate:
		r.Fix = []string{"set REDIS_CA_FILE to the PEM file of the authority that has signed the server's certificate"}
	case stream.FaultHost:
		r.Fix = []string{"name the server in " + v + " as its certificate does, or set sslHost there (host:port,ssl=true,sslHost=…)"}
	}
	return r
}

func (p *redisPatient) loggedIn(err error) Result {
	v := p.cfg.Variables.Redis
	r := Result{Check: redisLogin, State: Problem, Found: "Redis does not let user " + p.user() + " in"}
	code := stream.Code(err)
	switch {
	case code == "NOAUTH", code == "WRONGPASS" && p.conn.Password == "":
		r.Cause = code + ": the server asks for a password, and " + v + " has none"
		r.Fix = []string{"add it to " + v + ": host:port,password=… (with user=… for another user than default) or redis://user:password@host:port"}
	case code == "WRONGPASS":
		r.Cause = code + ": the password in " + v + " is not that of user " + p.user() + ", or there is no such user, or it is off"
		r.Fix = []string{"correct the password (and the user) in " + v}
	case code == "DENIED":
		r.Cause = code + ": protected mode, in which a server without a password serves its own machine only"
		r.Fix = []string{"set a password in Redis (requirepass in redis.conf) and in " + v}
	case code == "NOPERM":
		r.Found = "Redis lets user " + p.user() + " in, and do nothing"
		r.Cause = detail(err)
		r.Fix = []string{"give the user the rights in deploy/redis/users.acl"}
	case errors.Is(err, stream.ErrDenied):
		r.Cause = cmp.Or(code, "refused")
		r.Fix = []string{"correct user and password in " + v}
	case stream.ClosedByServer(err) && !p.conn.TLS:
		r.Found = "the server closes the connection"
		r.Cause = "it does not speak the protocol of Redis at that port, or wants TLS first"
		r.Fix = []string{"ask for TLS in " + v + " (rediss://, or ssl=true), or correct the port"}
	case errors.Is(err, stream.ErrRefused):
		r.Found = "Redis refuses the connection"
		r.Cause = detail(err)
		r.Fix = []string{"correct the number of the database in " + v}
	default:
		return p.trouble(redisLogin, err)
	}
	return r
}

// trouble is a server that does not do what it was asked for.
func (p *redisPatient) trouble(check string, err error) Result {
	r := Result{Check: check, State: Problem, Found: "Redis does not answer the question", Cause: detail(err)}
	switch {
	case errors.Is(err, stream.ErrDenied):
		r.Found = "user " + p.user() + " may not ask"
		r.Fix = []string{"see " + redisRights}
	case stream.Code(err) == "LOADING":
		r.Unreachable, r.Fix = true, []string{"wait until Redis has read its data"}
	case errors.Is(err, stream.ErrRefused):
		r.Fix = []string{"see the log of Redis"}
	default:
		r.Unreachable, r.Fix = true, []string{"see whether Redis is well: " + p.cli("INFO")}
	}
	return r
}

// detail is the part of an error that says what happened, without hints that name
// another variable than the one in force.
func detail(err error) string {
	e, ok := errors.AsType[*stream.Error](err)
	if !ok {
		return err.Error()
	}
	what, _, _ := strings.Cut(e.Detail, ", check ")
	return strings.TrimSuffix(e.Kind.Error()+": "+what, ": ")
}

// server looks at what the server says about itself.
func (p *redisPatient) server(ctx context.Context) {
	info, err := p.client.ServerInfo(ctx)
	if err != nil {
		checks := []string{redisVersion, redisRole, redisPersistence, redisEviction}
		if errors.Is(err, stream.ErrDenied) {
			for _, check := range checks {
				p.skip(check, "user %s may not ask (INFO), see %s", p.user(), redisRights)
			}
			return
		}
		for _, check := range checks {
			p.add(p.trouble(check, err))
		}
		return
	}
	p.version(info)
	p.role(info)
	p.persistence(info)
	p.eviction(info)
}

func (p *redisPatient) version(info stream.ServerInfo) {
	major, _, _ := strings.Cut(info.Version, ".")
	n, err := strconv.Atoi(major)
	switch {
	case err != nil:
		p.add(Result{
			Check: redisVersion, State: Warning, Found: "the server does not say its version",
			Cause: fmt.Sprintf("Redis %d.0 or later is needed", minRedis), Fix: []string{"see which version it is"},
		})
	case n < minRedis:
		p.add(Result{
			Check: redisVersion, State: Problem, Found: "Redis " + info.Version,
			Cause: fmt.Sprintf("streams lack commands that the bridge uses before %d.0", minRedis),
			Fix:   []string{fmt.Sprintf("install Redis %d.0 or later", minRedis)},
		})
	default:
		p.ok(redisVersion, "Redis %s", info.Version)
	}
}

func (p *redisPatient) role(info stream.ServerInfo) {
	v := p.cfg.Variables.Redis
	switch {
	case info.Mode == "sentinel":
		p.add(Result{
			Check: redisRole, State: Problem, Found: "a Sentinel", Cause: "it knows where Redis is and is none itself",
			Fix: []string{"name the Redis server in " + v},
		})
	case info.Mode == "cluster":
		p.add(Result{
			Check: redisRole, State: Problem, Found: "a node of a Redis Cluster",
			Cause: "clusters are not supported: other nodes hold some of the streams",
			Fix:   []string{"name a Redis server of its own in " + v},
		})
	case info.Replica:
		p.add(Result{
			Check: redisRole, State: Problem, Found: "a read-only replica of " + info.Primary,
			Cause: "nothing can be acknowledged or published there", Fix: []string{"name the primary, " + info.Primary + ", in " + v},
		})
	default:
		p.ok(redisRole, "a primary, which takes writes")
	}
}

func (p *redisPatient) persistence(info stream.ServerInfo) {
	switch {
	case info.AppendOnly == "":
		p.add(Result{
			Check: redisPersistence, State: Warning, Found: "the server does not say whether it keeps its data",
			Cause: "without, a crash of Redis loses jobs that were not started yet", Fix: []string{"see that it writes an append-only file, or the like"},
		})
	case info.AppendOnly == "off":
		p.add(Result{
			Check: redisPersistence, State: Problem, Found: "the append-only file is off",
			Cause: "a crash of Redis loses jobs that were not started yet, and what was published may be published again",
			Fix: []string{
				p.cli("CONFIG", "SET", "appendonly", "yes"),
				"put `appendonly yes` into redis.conf, or the next start forgets it",
			},
		})
	case info.AppendFailed:
		p.add(Result{
			Check: redisPersistence, State: Problem, Found: "the append-only file cannot be written",
			Cause: "most often the disk is full; Redis accepts no more writes until it can",
			Fix:   []string{"make room on the disk of Redis, and see its log"},
		})
	default:
		p.ok(redisPersistence, "the append-only file is on")
	}
}

func (p *redisPatient) eviction(info stream.ServerInfo) {
	r := Result{
		Check: redisEviction, State: Problem, Found: "maxmemory-policy is " + info.Policy,
		Cause: "when memory is short, Redis drops keys without a word: streams with jobs, or markers of what is published",
		Fix: []string{
			p.cli("CONFIG", "SET", "maxmemory-policy", "noeviction"),
			"put `maxmemory-policy noeviction` into redis.conf, or the next start forgets it",
		},
	}
	switch {
	case info.Policy == "noeviction", info.Policy == "":
		p.ok(redisEviction, "maxmemory-policy is %s", cmp.Or(info.Policy, "not told"))
		return
	case info.MaxMemory == 0:
		r.State = Warning
		r.Found += ", and maxmemory is not set"
	}
	p.add(r)
}

func (p *redisPatient) rights(ctx context.Context) {
	const complete = "deploy/redis/users.acl holds all rights an executor needs"
	missing, err := p.client.MissingRights(ctx, p.cfg.ChatList)
	switch {
	case errors.Is(err, stream.ErrDenied):
		p.add(Result{
			Check: redisRights, State: Problem, Found: "user " + p.user() + " may not run scripts",
			Cause: detail(err) + "; updates are published by scripts, and rights are looked up by one",
			Fix:   []string{p.cli("ACL", "SETUSER", p.user(), "(+eval +evalsha ~{executor}:*)"), complete},
		})
	case errors.Is(err, stream.ErrRefused):
		p.skip(redisRights, "this server cannot be asked for them")
	case err != nil:
		p.add(p.trouble(redisRights, err))
	case len(missing) > 0:
		var names []string
		rules := []string{"ACL", "SETUSER", p.user()}
		for _, m := range missing {
			name := strings.ToLower(m.Command[0])
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			rules = append(rules, "("+m.Rule+")")
		}
		p.add(Result{
			Check: redisRights, State: Problem, Found: "user " + p.user() + " lacks rights to " + list(names),
			Cause: "an executor with these settings cannot do its work",
			Fix:   []string{p.cli(rules...), complete},
		})
	default:
		p.ok(redisRights, "user %s may do all that an executor does", p.user())
	}
}

// groups looks at the consumer groups, and for bridges among their consumers.
func (p *redisPatient) groups(ctx context.Context) {
	var missing, made, alive []string
	var orphaned int64
	trouble := false
	for _, name := range streams() {
		exists, err := p.client.GroupExists(ctx, name)
		if err == nil && !exists && p.cfg.Fix {
			if err = p.client.EnsureGroup(ctx, name); err == nil {
				made = append(made, name)
			}
		} else if err == nil && !exists {
			missing = append(missing, name)
		}
		var consumers []stream.Consumer
		if err == nil {
			consumers, err = p.client.Consumers(ctx, name)
		}
		if err != nil {
			trouble = true
			p.add(p.noGroup(name, err))
			continue
		}
		for _, c := range consumers {
			switch {
			case !c.Alive:
				orphaned += c.Pending
			case !slices.Contains(alive, c.Name):
				alive = append(alive, c.Name)
			}
		}
	}
	// A bridge that has not read an entry yet is no consumer for Redis.
	holder, err := p.client.LeaseHolder(ctx, bridge.LeaseName)
	if err != nil {
		trouble = true
		p.add(p.trouble(redisBridges, err))
	} else if holder != "" && !slices.Contains(alive, holder) {
		alive = append(alive, holder)
	}
	group := p.client.Group()
	switch {
	case len(missing) > 0:
		p.add(Result{
			Check: redisGroups, State: Warning, Found: fmt.Sprintf("no group %s on %s", group, list(missing)),
			Cause: "no executor has read from there yet, or Redis has lost its data",
			Fix:   []string{"executor doctor --fix", "or start an executor, which creates them: executor run"},
		})
	case len(made) > 0:
		p.add(Result{
			Check: redisGroups, State: OK, Found: fmt.Sprintf("group %s on all %d streams", group, len(streams())),
			Fixed: fmt.Sprintf("created group %s on %s", group, list(made)),
		})
	case !trouble:
		p.ok(redisGroups, "group %s on all %d streams", group, len(streams()))
	}
	switch {
	case err != nil:
	case trouble && len(alive) == 0:
		p.skip(redisBridges, "%s comes first", redisGroups)
	case len(alive) == 0:
		found := "no bridge is running"
		if orphaned > 0 {
			found += fmt.Sprintf("; %d entries wait for one to take them over", orphaned)
		}
		p.add(Result{
			Check: redisBridges, State: Problem, Found: found,
			Cause: "nobody reads the streams: in the last 10 s no consumer of group " + group + " has shown that it lives",
			Fix:   []string{"executor run", "or, where workers are processes of their own: executor bridge"},
		})
	default:
		p.ok(redisBridges, "%s running", count(len(alive), "bridge is", "bridges are"))
	}
}

func (p *redisPatient) noGroup(name string, err error) Result {
	if !errors.Is(err, stream.ErrWrongType) {
		return p.trouble(redisGroups, err)
	}
	return Result{
		Check: redisGroups, State: Problem, Found: name + " is no stream", Cause: "another program keeps something else under that key",
		Fix: []string{"find out what it is, and move it away: " + p.cli("RENAME", name, name+":old")},
	}
}

// oldEntry is how old an entry in flight may be before one should look why.
const oldEntry = time.Hour

func (p *redisPatient) backlog(ctx context.Context) {
	var busy []string
	var dead int64
	var oldest time.Duration
	n := len(p.results)
	for _, name := range streams() {
		st, err := p.client.Stats(ctx, name)
		if errors.Is(err, stream.ErrWrongType) {
			p.skip(redisBacklog, "%s comes first", redisGroups)
			return
		}
		if err != nil {
			p.add(p.trouble(redisBacklog, err))
			return
		}
		dead += st.DeadLength
		oldest = max(oldest, st.OldestPending)
		if st.Lag > 0 || st.Pending > 0 {
			busy = append(busy, fmt.Sprintf("%s %d unread, %d in flight", name, max(0, st.Lag), st.Pending))
		}
		if st.Lag != 0 && p.cfg.MaxInFlight > 0 && st.Pending >= p.cfg.MaxInFlight {
			p.add(Result{
				Check: redisBacklog, State: Warning, Found: fmt.Sprintf("%s is not read: %d jobs are in flight", name, st.Pending),
				Cause: "reading pauses at BRIDGE_MAX_IN_FLIGHT until jobs end",
				Fix:   []string{"start more workers (executor worker), or raise MAX_<ROLE> if it limits them"},
			})
		}
	}
	if oldest > oldEntry {
		p.add(Result{
			Check: redisBacklog, State: Warning, Found: "the oldest job in flight was sent " + term.Short(oldest) + " ago",
			Cause: "it waits for a worker or for the LLM, or its retries go on (RETRY_FOR)",
			Fix:   []string{"see what it waits for: executor list"},
		})
	}
	if len(p.results) > n {
		return
	}
	found := "nothing is unread or in flight"
	if len(busy) > 0 {
		found = strings.Join(busy, "; ")
	}
	if dead > 0 {
		found += "; " + count(int(dead), "dead letter", "dead letters")
	}
	p.ok(redisBacklog, "%s", found)
}

// count writes a number with its word.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
