package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	namespacepb "go.temporal.io/api/namespace/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	taskqueuepb "go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/term"
	"github.com/nodpt/executor/workflows"
)

const (
	temporalConnect    = "temporal.connect"
	temporalNamespace  = "temporal.namespace"
	temporalRetention  = "temporal.retention"
	temporalAttributes = "temporal.attributes"
	temporalWorkers    = "temporal.workers"
	temporalBacklog    = "temporal.backlog"
)

func temporalChecks() []string {
	return []string{temporalConnect, temporalNamespace, temporalRetention, temporalAttributes, temporalWorkers, temporalBacklog}
}

const (
	// recommendedRetention is how long the history of a job should stay: long enough
	// to look into what failed before a weekend.
	recommendedRetention = 7 * 24 * time.Hour
	// dialTimeout and askTimeout bound what is asked of a Temporal server.
	dialTimeout = 5 * time.Second
	askTimeout  = 10 * time.Second
	// proxyTimeout is how long a server that cannot be dialled is asked all the
	// same: the environment may name a proxy that gRPC takes.
	proxyTimeout = 2 * time.Second
	// verdictTimeout is how long a server is given to refuse a certificate of ours.
	verdictTimeout = time.Second
	// pollerAge is how long ago a living worker may have asked for tasks: it asks
	// again when the server has had nothing for it for a minute. The server lists
	// workers for some minutes after their end.
	pollerAge = 75 * time.Second
	// oldTask is how old a waiting task may be before one should look why.
	oldTask = 5 * time.Minute
)

// temporalPatient is one Temporal server.
type temporalPatient struct {
	*doctor
	*sheet
	client    client.Client
	address   string
	namespace string
	created   bool // the namespace, a moment ago: not the whole server knows it yet
}

func (d *doctor) temporal(ctx context.Context, s *sheet) {
	options := d.cfg.Temporal
	options.Logger = sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler))
	p := &temporalPatient{doctor: d, sheet: s, address: dialable(options.HostPort), namespace: options.Namespace}
	var err error
	if p.client, err = client.NewLazyClient(options); err != nil {
		s.stop(Result{
			Check: temporalConnect, State: Problem, Found: "no client for " + p.address, Cause: err.Error(),
			Fix: []string{"correct the TEMPORAL_ settings"},
		})
		return
	}
	defer p.client.Close()
	if !p.connect(ctx) || !p.describe(ctx) {
		return
	}
	p.attributes(ctx)
	p.queues(ctx)
}

// dialable is the host:port of a gRPC target.
func dialable(target string) string {
	if _, address, found := strings.Cut(target, ":///"); found {
		return address
	}
	return target
}

// connect finds out whether a Temporal server answers.
func (p *temporalPatient) connect(ctx context.Context) bool {
	refused := p.dial(ctx)
	patience := askTimeout
	if refused != nil {
		patience = proxyTimeout
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	info, err := p.client.WorkflowService().GetSystemInfo(asking, &workflowservice.GetSystemInfoRequest{})
	secure := "without TLS"
	if p.cfg.Temporal.ConnectionOptions.TLS != nil {
		secure = "with TLS"
	}
	switch {
	case err == nil:
		p.ok(temporalConnect, "Temporal %s answers at %s, %s", info.GetServerVersion(), p.address, secure)
		return true
	case refused != nil:
		p.stop(*refused)
	default:
		p.stop(p.silent(ctx, err))
	}
	return false
}

// dial connects as far as TLS, nil where that works.
func (p *temporalPatient) dial(ctx context.Context) *Result {
	r := &Result{Check: temporalConnect, State: Problem, Found: "no connection to " + p.address}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		r.Unreachable, r.Cause = true, err.Error()
		r.Fix = []string{"start the Temporal server there, or set TEMPORAL_ADDRESS to where it is (host:port)"}
		if name, ok := errors.AsType[*net.DNSError](err); ok {
			r.Cause = "no address for " + name.Name + ": " + name.Err
			r.Fix = []string{"correct the host in TEMPORAL_ADDRESS"}
		}
		return r
	}
	defer func() { _ = conn.Close() }()
	if p.cfg.Temporal.ConnectionOptions.TLS == nil {
		return nil
	}
	err = p.handshake(ctx, conn, p.cfg.Temporal.ConnectionOptions.TLS)
	if err == nil {
		return nil
	}
	r.Cause = "TLS: " + err.Error()
	switch {
	case isType[x509.HostnameError](err):
		r.Fix = []string{"set TEMPORAL_TLS_SERVER_NAME to the name in the server's certificate"}
	case isType[*tls.CertificateVerificationError](err):
		r.Fix = []string{"set TEMPORAL_TLS_SERVER_CA_CERT_PATH to the PEM file of the authority that has signed the server's certificate"}
	case alert(err):
		r.Fix = []string{"set TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH to a certificate that the server accepts"}
	default:
		r.Cause = "the server does not speak TLS at that port"
		r.Fix = []string{"set TEMPORAL_TLS=false (an API key switches TLS on), or correct the port in TEMPORAL_ADDRESS"}
	}
	return r
}

func isType[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func (p *temporalPatient) handshake(ctx context.Context, conn net.Conn, config *tls.Config) error {
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(p.address)
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return err
	}
	// With TLS 1.3 the handshake is over before the server has looked at our
	// certificate. It says next what it thinks of it, or begins with HTTP/2.
	_ = conn.SetReadDeadline(time.Now().Add(verdictTimeout))
	if _, err := secured.Read(make([]byte, 1)); alert(err) {
		return err
	}
	return nil
}

// alert reports whether the other side has refused TLS with a reason.
func alert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// silent is a port that somebody listens at, and no Temporal server answers.
func (p *temporalPatient) silent(ctx context.Context, err error) Result {
	r := Result{
		Check: temporalConnect, State: Problem, Found: "no Temporal server answers at " + p.address,
		Cause: reason(err), Fix: []string{"correct the port in TEMPORAL_ADDRESS: that of the gRPC frontend, 7233 if nothing else was set (the Web UI's is another one)"},
	}
	switch {
	case denied(err):
		return p.refused(temporalConnect, "the server does not let us in", err)
	case p.cfg.Temporal.ConnectionOptions.TLS == nil && p.speaksTLS(ctx):
		r.Cause = "the server wants TLS"
		r.Fix = []string{"set TEMPORAL_TLS=true"}
	case status.Code(err) == codes.DeadlineExceeded, isType[*serviceerror.DeadlineExceeded](err), isType[*serviceerror.Unavailable](err), isType[*serviceerror.ResourceExhausted](err):
		r.Unreachable = true
		r.Fix = append([]string{"see whether the server is well: " + p.cli("operator", "cluster", "health")}, r.Fix...)
	}
	return r
}

// speaksTLS reports whether the server answers a TLS handshake, whatever its
// certificate.
func (p *temporalPatient) speaksTLS(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	err = p.handshake(ctx, conn, &tls.Config{MinVersion: tls.VersionTLS12})
	return err == nil || isType[*tls.CertificateVerificationError](err) || alert(err)
}

func denied(err error) bool {
	code := status.Code(err)
	return isType[*serviceerror.PermissionDenied](err) || code == codes.PermissionDenied || code == codes.Unauthenticated
}

func (p *temporalPatient) refused(check, found string, err error) Result {
	r := Result{
		Check: check, State: Problem, Found: found, Cause: reason(err),
		Fix: []string{"set TEMPORAL_API_KEY, or TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH, to credentials that may use namespace " + p.namespace},
	}
	return r
}

// reason is what the server or gRPC says, on one line and not without end.
func reason(err error) string {
	text := strings.Join(strings.Fields(status.Convert(err).Message()), " ")
	if text == "" {
		text = err.Error()
	}
	const most = 300
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// cli is a command of Temporal's own CLI, which reads the same TEMPORAL_
// variables.
func (p *temporalPatient) cli(args ...string) string {
	words := append([]string{"temporal"}, args...)
	if p.address != "localhost:7233" && p.address != "127.0.0.1:7233" {
		words = append(words, "--address", p.address)
	}
	if p.cfg.Temporal.ConnectionOptions.TLS != nil {
		words = append(words, "--tls")
	}
	return command(words...)
}

// describe looks at the namespace and how long it keeps closed workflows.
func (p *temporalPatient) describe(ctx context.Context) bool {
	ns, err := p.describeNamespace(ctx)
	fixed := ""
	create := p.cli("operator", "namespace", "create", "--namespace", p.namespace, "--retention", hours(recommendedRetention))
	if isType[*serviceerror.NamespaceNotFound](err) {
		r := Result{
			Check: temporalNamespace, State: Problem, Found: "there is no namespace " + p.namespace,
			Cause: "the server is new or another one, or TEMPORAL_NAMESPACE is mistyped",
			Fix:   []string{create, "or set TEMPORAL_NAMESPACE to one that exists: " + p.cli("operator", "namespace", "list")},
		}
		if p.cfg.Fix {
			if ns, err = p.register(ctx); err != nil {
				r.Cause += "; it could not be created: " + reason(err)
			}
			fixed, p.created = "created namespace "+p.namespace, true
		}
		if err != nil {
			p.stop(r)
			return false
		}
	}
	if err != nil {
		p.stop(p.trouble(temporalNamespace, "namespace "+p.namespace+" cannot be looked at", err))
		return false
	}
	if state := ns.GetNamespaceInfo().GetState(); state != enumspb.NAMESPACE_STATE_REGISTERED {
		p.stop(Result{
			Check: temporalNamespace, State: Problem, Found: "namespace " + p.namespace + " is " + strings.ToLower(state.String()),
			Cause: "no workflow can be started there", Fix: []string{"set TEMPORAL_NAMESPACE to another one"},
		})
		return false
	}
	p.add(Result{Check: temporalNamespace, State: OK, Found: "namespace " + p.namespace, Fixed: fixed})
	p.retention(ctx, ns.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration())
	return true
}

func (p *temporalPatient) describeNamespace(ctx context.Context) (*workflowservice.DescribeNamespaceResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return p.client.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: p.namespace})
}

func (p *temporalPatient) register(ctx context.Context) (*workflowservice.DescribeNamespaceResponse, error) {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := p.client.WorkflowService().RegisterNamespace(asking, &workflowservice.RegisterNamespaceRequest{
		Namespace: p.namespace, WorkflowExecutionRetentionPeriod: durationpb.New(recommendedRetention),
	})
	if err != nil && !isType[*serviceerror.NamespaceAlreadyExists](err) {
		return nil, err
	}
	return p.describeNamespace(ctx)
}

// trouble is a server that does not do what it was asked for.
func (p *temporalPatient) trouble(check, found string, err error) Result {
	if denied(err) {
		return p.refused(check, found, err)
	}
	return Result{
		Check: check, State: Problem, Found: found, Cause: reason(err), Unreachable: true,
		Fix: []string{"see whether the server is well: " + p.cli("operator", "cluster", "health")},
	}
}

func (p *temporalPatient) retention(ctx context.Context, kept time.Duration) {
	found := "closed workflows are kept " + days(kept)
	if kept >= recommendedRetention {
		p.ok(temporalRetention, "%s", found)
		return
	}
	r := Result{
		Check: temporalRetention, State: Warning, Found: found,
		Cause: fmt.Sprintf("after that nobody can see in the Web UI why a job failed, or retry it there; %s are recommended", days(recommendedRetention)),
		Fix:   []string{p.cli("operator", "namespace", "update", "--namespace", p.namespace, "--retention", hours(recommendedRetention))},
	}
	if p.cfg.Fix {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		_, err := p.client.WorkflowService().UpdateNamespace(asking, &workflowservice.UpdateNamespaceRequest{
			Namespace: p.namespace,
			Config:    &namespacepb.NamespaceConfig{WorkflowExecutionRetentionTtl: durationpb.New(recommendedRetention)},
		})
		if err == nil {
			r = Result{
				Check: temporalRetention, State: OK, Found: "closed workflows are kept " + days(recommendedRetention),
				Fixed: "raised the retention from " + days(kept) + " to " + days(recommendedRetention),
			}
		} else {
			r.Cause += "; it could not be raised: " + reason(err)
		}
	}
	p.add(r)
}

func days(d time.Duration) string {
	if d%(24*time.Hour) == 0 {
		return count(int(d/(24*time.Hour)), "day", "days")
	}
	return term.Short(d)
}

func hours(d time.Duration) string { return fmt.Sprintf("%dh", int(d.Hours())) }

// settleFor is how long a namespace that was just created may take until the
// whole server knows it.
const (
	settleFor  = 20 * time.Second
	settleTick = 200 * time.Millisecond
)

func (p *temporalPatient) attributes(ctx context.Context) {
	var listed *operatorservice.ListSearchAttributesResponse
	err := p.settled(ctx, func(ctx context.Context) (err error) {
		listed, err = p.client.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: p.namespace})
		return err
	})
	if err != nil {
		p.add(Result{
			Check: temporalAttributes, State: Warning, Found: "the search attributes cannot be listed", Cause: reason(err),
			Fix: []string{"see whether they are there: " + p.cli("operator", "search-attribute", "list", "--namespace", p.namespace)},
		})
		return
	}
	create := []string{"operator", "search-attribute", "create", "--namespace", p.namespace}
	var missing, other []string
	for _, name := range workflows.AttributeNames() {
		kind, found := listed.GetCustomAttributes()[name]
		switch {
		case !found:
			missing = append(missing, name)
			create = append(create, "--name", name, "--type", "Keyword")
		case kind != enumspb.INDEXED_VALUE_TYPE_KEYWORD:
			other = append(other, name+" ("+kind.String()+")")
		}
	}
	switch {
	case len(other) > 0:
		p.add(Result{
			Check: temporalAttributes, State: Problem, Found: "search attributes of another type than Keyword: " + list(other),
			Cause: "another program uses these names in namespace " + p.namespace + "; runs are started without any attributes then",
			Fix:   []string{"set TEMPORAL_NAMESPACE to a namespace of the executor's own"},
		})
	case len(missing) == 0:
		p.ok(temporalAttributes, "%s are registered", list(workflows.AttributeNames()))
	default:
		r := Result{
			Check: temporalAttributes, State: Warning, Found: list(missing) + " are not registered",
			Cause: "until they are, jobs cannot be found by role, user, project or model in the Web UI",
			Fix:   []string{p.cli(create...), "or start an executor, which registers them where it may: executor run"},
		}
		if p.cfg.Fix {
			err := p.settled(ctx, func(ctx context.Context) error { return bridge.EnsureSearchAttributes(ctx, p.client, p.namespace) })
			if err == nil {
				r = Result{
					Check: temporalAttributes, State: OK, Found: list(workflows.AttributeNames()) + " are registered",
					Fixed: "registered " + list(missing),
				}
			} else {
				r.Cause += "; they could not be registered: " + reason(errors.Unwrap(err))
			}
		}
		p.add(r)
	}
}

// settled does something in the namespace, and while the namespace is too new does
// it again.
func (p *temporalPatient) settled(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, settleFor)
	defer cancel()
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	for {
		asking, done := context.WithTimeout(ctx, askTimeout)
		err := do(asking)
		done()
		if !p.created || !isType[*serviceerror.NamespaceNotFound](err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// taskQueue is one the executor's workers serve.
type taskQueue struct {
	name, short string // executor-agent; agent, as `executor worker --queues` takes it
	kinds       []enumspb.TaskQueueType

	err      error
	pollers  []string  // identities of those that live
	lastSeen time.Time // of anybody, living or not
	unserved bool      // one of the kinds has no living poller
	backlog  int64
	age      time.Duration
}

func taskQueues() []*taskQueue {
	queues := []*taskQueue{{
		name: workflows.QueueWorkflows, short: strings.TrimPrefix(workflows.QueueWorkflows, "executor-"),
		kinds: []enumspb.TaskQueueType{enumspb.TASK_QUEUE_TYPE_WORKFLOW, enumspb.TASK_QUEUE_TYPE_ACTIVITY},
	}}
	for _, role := range job.Roles() {
		queues = append(queues, &taskQueue{
			name: workflows.RoleQueue(role), short: string(role),
			kinds: []enumspb.TaskQueueType{enumspb.TASK_QUEUE_TYPE_ACTIVITY},
		})
	}
	return queues
}

// queues looks for workers, and for what waits for them.
func (p *temporalPatient) queues(ctx context.Context) {
	queues := taskQueues()
	var wg sync.WaitGroup
	for _, q := range queues {
		wg.Go(func() { p.queue(ctx, q) })
	}
	wg.Wait()
	for _, q := range queues {
		if q.err != nil {
			p.add(p.trouble(temporalWorkers, "task queue "+q.name+" cannot be looked at", q.err))
			p.skip(temporalBacklog, "%s comes first", temporalWorkers)
			return
		}
	}
	p.workers(queues)
	p.waiting(queues)
}

func (p *temporalPatient) queue(ctx context.Context, q *taskQueue) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, kind := range q.kinds {
		d, err := p.client.WorkflowService().DescribeTaskQueue(ctx, &workflowservice.DescribeTaskQueueRequest{
			Namespace: p.namespace, TaskQueue: &taskqueuepb.TaskQueue{Name: q.name, Kind: enumspb.TASK_QUEUE_KIND_NORMAL},
			TaskQueueType: kind, ReportStats: true,
		})
		if p.created && isType[*serviceerror.NamespaceNotFound](err) {
			d, err = nil, nil // nobody can be there
		}
		if err != nil {
			q.err = err
			return
		}
		living := 0
		for _, poller := range d.GetPollers() {
			seen := poller.GetLastAccessTime().AsTime()
			if seen.After(q.lastSeen) {
				q.lastSeen = seen
			}
			if time.Since(seen) > pollerAge {
				continue
			}
			living++
			if !slices.Contains(q.pollers, poller.GetIdentity()) {
				q.pollers = append(q.pollers, poller.GetIdentity())
			}
		}
		q.unserved = q.unserved || living == 0
		q.backlog += d.GetStats().GetApproximateBacklogCount()
		q.age = max(q.age, d.GetStats().GetApproximateBacklogAge().AsDuration())
	}
}

func (p *temporalPatient) workers(queues []*taskQueue) {
	var unserved, short, processes []string
	var last time.Time
	var waiting int64
	for _, q := range queues {
		for _, identity := range q.pollers {
			if !slices.Contains(processes, identity) {
				processes = append(processes, identity)
			}
		}
		if q.unserved {
			unserved, short = append(unserved, q.name), append(short, q.short)
			waiting += q.backlog
			if q.lastSeen.After(last) {
				last = q.lastSeen
			}
		}
	}
	if len(unserved) == 0 {
		p.ok(temporalWorkers, "all %d task queues are served, by %s", len(queues), count(len(processes), "process", "processes"))
		return
	}
	found := "no worker on " + list(unserved)
	if waiting > 0 {
		found += "; " + count(int(waiting), "task waits", "tasks wait")
	}
	cause := "nobody has asked for tasks there in the last minute"
	if !last.IsZero() {
		cause += fmt.Sprintf(" (the last one %s ago)", term.Short(time.Since(last)))
	}
	fix := []string{"executor run"}
	if len(short) < len(queues) {
		fix = []string{"executor worker --queues " + strings.Join(short, ",")}
	} else {
		fix = append(fix, "or, beside a bridge: executor worker")
	}
	p.add(Result{Check: temporalWorkers, State: Problem, Found: found, Cause: cause, Fix: fix})
}

func (p *temporalPatient) waiting(queues []*taskQueue) {
	var busy []string
	old := false
	for _, q := range queues {
		if q.backlog == 0 {
			continue
		}
		line := fmt.Sprintf("%s %d", q.name, q.backlog)
		if q.age > 0 {
			line += fmt.Sprintf(" (oldest %s)", term.Short(q.age))
		}
		busy = append(busy, line)
		if q.age > oldTask && !q.unserved {
			old = true
			r := Result{
				Check: temporalBacklog, State: Warning, Found: "tasks wait on " + line,
				Cause: "all slots of its workers are taken",
				Fix:   []string{"start another worker: executor worker --queues " + q.short},
			}
			if q.name != workflows.QueueWorkflows {
				r.Cause += ", by calls that take long or wait for MAX_TOTAL"
				r.Fix = append(r.Fix, "or raise MAX_"+strings.ToUpper(q.short))
			}
			p.add(r)
		}
	}
	switch {
	case old:
	case len(busy) == 0:
		p.ok(temporalBacklog, "no task waits for a worker")
	default:
		p.ok(temporalBacklog, "tasks wait on %s", strings.Join(busy, ", "))
	}
}
