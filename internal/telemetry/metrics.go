package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/attribute"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/semconv/v1.41.0/genaiconv"
	"go.temporal.io/sdk/client"
	temporalotel "go.temporal.io/sdk/contrib/opentelemetry"

	"github.com/nodpt/executor/internal/job"
)

// observeTimeout is how long a scrape waits for the numbers of the streams.
const observeTimeout = 2 * time.Second

// provider is the value of gen_ai.provider.name: the protocol is known, the
// product behind the endpoint is not.
const provider = genaiconv.ProviderNameAttr("openai-compatible")

// StreamStats are the numbers of one role's stream at the time of a scrape.
type StreamStats struct {
	Length        int64         // entries in the stream, handled ones included
	Pending       int64         // entries read and not acknowledged: jobs in flight
	DeadLength    int64         // entries in the dead-letter stream
	Lag           int64         // entries nobody has read yet
	OldestPending time.Duration // age of the oldest pending entry; 0 without one
}

// Metrics counts what happens. All names begin with executor_, apart from the
// LLM's (gen_ai_, by OpenTelemetry's GenAI conventions), the Temporal SDK's
// (temporal_) and the runtime's (go_, process_). Labels take values from small
// fixed sets only; a value that is not of its set becomes "other", so no label
// can carry content and no caller can make the number of series grow.
type Metrics struct {
	registry *prometheus.Registry
	provider *sdkmetric.MeterProvider
	temporal client.MetricsHandler
	bounds   *bounds
	observe  atomic.Pointer[observer]

	started, finished, rejected, duplicate metric.Int64Counter
	normalised, lost, unaccounted, answers metric.Int64Counter
	bridgeErrors, activityErrors           metric.Int64Counter
	running, waiting                       metric.Int64UpDownCounter
	duration                               metric.Float64Histogram
	llmDuration                            genaiconv.ClientOperationDuration
	llmTokens                              genaiconv.ClientTokenUsage
}

type observer func(context.Context) (map[job.Role]StreamStats, error)

// NewMetrics returns metrics with a registry of their own. The models are those
// of the configuration; calls to any other are counted as model "other", because
// chat entries may name models freely.
func NewMetrics(models ...string) (*Metrics, error) {
	m := &Metrics{registry: prometheus.NewRegistry(), bounds: newBounds(models)}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	exporter, err := otelprom.New(
		otelprom.WithRegisterer(m.registry),
		otelprom.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes),
		otelprom.WithoutScopeInfo(),
		otelprom.WithoutTargetInfo(),
	)
	if err != nil {
		return nil, fmt.Errorf("metrics exporter: %w", err)
	}
	m.provider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter), sdkmetric.WithView(secondsView()))
	m.temporal = newMemo(temporalotel.NewMetricsHandler(temporalotel.MetricsHandlerOptions{
		Meter:                m.provider.Meter("temporal-sdk-go"),
		UseMonotonicCounters: true, // otherwise counters become gauges without _total
		OnError:              func(error) {},
	}))
	if err := m.createInstruments(m.provider.Meter(modulePath)); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return m, nil
}

// secondsView gives the SDK's latencies buckets that suit seconds; the default
// ones are made for milliseconds.
func secondsView() sdkmetric.View {
	return sdkmetric.NewView(
		sdkmetric.Instrument{Name: "temporal_*", Kind: sdkmetric.InstrumentKindHistogram},
		sdkmetric.Stream{Aggregation: sdkmetric.AggregationExplicitBucketHistogram{
			Boundaries: []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300},
		}},
	)
}

func (m *Metrics) createInstruments(meter metric.Meter) error {
	var errs []error
	counter := func(name, description string) metric.Int64Counter {
		c, err := meter.Int64Counter(name, metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	upDown := func(name, description string) metric.Int64UpDownCounter {
		c, err := meter.Int64UpDownCounter(name, metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	m.started = counter("executor.jobs.started", "Attempts at a job that a worker of this process began.")
	m.finished = counter("executor.jobs.finished", "Jobs that ended, by status and error code (none for completed).")
	m.rejected = counter("executor.entries.rejected", "Stream entries that are no valid job, by reason.")
	m.duplicate = counter("executor.entries.duplicate", "Stream entries of a job already known, by kind.")
	m.normalised = counter("executor.entries.normalised", "Corrections made to accepted entries, by kind.")
	m.lost = counter("executor.entries.lost", "Pending entries whose content was deleted before their job started.")
	m.unaccounted = counter("executor.entries.unaccounted", "Entries read and not pending whose job has neither row nor run, by kind: restored, reported.")
	m.bridgeErrors = counter("executor.bridge.errors", "Failures of the bridge at Redis, Temporal or the store, by kind.")
	m.activityErrors = counter("executor.activity.errors", "Failed attempts of role activities, by kind.")
	m.answers = counter("executor.llm.answers", "Answers of the LLM, by the reason it gave for their end.")
	m.running = upDown("executor.jobs.running", "Jobs running in this process.")
	m.waiting = upDown("executor.total.waiting", "Jobs of this process that wait for a permit of MAX_TOTAL.")

	var err error
	m.duration, err = meter.Float64Histogram("executor.job.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from a job's arrival in the stream to its end."),
		metric.WithExplicitBucketBoundaries(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400))
	errs = append(errs, err)
	// The buckets of the GenAI conventions.
	m.llmDuration, err = genaiconv.NewClientOperationDuration(meter, metric.WithExplicitBucketBoundaries(
		0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92))
	errs = append(errs, err)
	m.llmTokens, err = genaiconv.NewClientTokenUsage(meter, metric.WithExplicitBucketBoundaries(
		1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864))
	errs = append(errs, err)
	errs = append(errs, m.createStreamGauges(meter))
	return errors.Join(errs...)
}

func (m *Metrics) createStreamGauges(meter metric.Meter) error {
	var errs []error
	gauge := func(name, description string) metric.Int64ObservableGauge {
		g, err := meter.Int64ObservableGauge(name, metric.WithDescription(description))
		errs = append(errs, err)
		return g
	}
	up := gauge("executor.streams.up", "1 if the streams could be asked for their numbers at this scrape, else 0.")
	length := gauge("executor.stream.length", "Entries in the role's stream, handled ones included.")
	pending := gauge("executor.stream.pending", "Entries of the stream that were read and not acknowledged: jobs in flight.")
	lag := gauge("executor.stream.lag", "Entries of the stream that nobody has read yet.")
	dead := gauge("executor.dead.letter.length", "Entries in the role's dead-letter stream.")
	oldest, err := meter.Float64ObservableGauge("executor.stream.oldest.pending.age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest pending entry; 0 without one."))
	errs = append(errs, err)

	_, err = meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		observe := m.observe.Load()
		if observe == nil {
			return nil // a process without a bridge
		}
		ctx, cancel := context.WithTimeout(ctx, observeTimeout)
		defer cancel()
		stats, err := (*observe)(ctx)
		if err != nil {
			o.ObserveInt64(up, 0)
			return nil // reported as a metric; the rest of the scrape goes on
		}
		o.ObserveInt64(up, 1)
		for role, s := range stats {
			set := metric.WithAttributeSet(attribute.NewSet(m.bounds.role(role)))
			o.ObserveInt64(length, s.Length, set)
			o.ObserveInt64(pending, s.Pending, set)
			o.ObserveInt64(lag, s.Lag, set)
			o.ObserveInt64(dead, s.DeadLength, set)
			o.ObserveFloat64(oldest, s.OldestPending.Seconds(), set)
		}
		return nil
	}, up, length, pending, lag, dead, oldest)
	return errors.Join(append(errs, err)...)
}

// Handler serves the metrics in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
	})
}

// TemporalHandler receives the SDK's own metrics, for client.Options.
func (m *Metrics) TemporalHandler() client.MetricsHandler { return m.temporal }

// Shutdown ends collection.
func (m *Metrics) Shutdown(ctx context.Context) error {
	if err := m.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("stop metrics: %w", err)
	}
	return nil
}

// JobStarted counts an attempt at a job that a worker began.
func (m *Metrics) JobStarted(role job.Role) { m.count(m.started, 1, m.bounds.role(role)) }

// JobFinished counts a job that ended with that status, and measures the time
// since it arrived. The code is the error code, empty for a completed job. An
// age of zero or less is not measured: producers may set entry ids by hand.
func (m *Metrics) JobFinished(role job.Role, status job.Status, code string, sinceEnqueued time.Duration) {
	r, s := m.bounds.role(role), m.bounds.status(status)
	m.count(m.finished, 1, r, s, m.bounds.code("code", code))
	if sinceEnqueued > 0 {
		m.duration.Record(context.Background(), sinceEnqueued.Seconds(), metric.WithAttributes(r, s))
	}
}

// EntryRejected counts an entry that is no valid job; reason is one of
// job.Reasons.
func (m *Metrics) EntryRejected(role job.Role, reason string) {
	m.count(m.rejected, 1, m.bounds.role(role), m.bounds.code("reason", reason))
}

// EntryDuplicate counts an entry of a job that is already known; kind says what
// became of it, for example running, old or reask.
func (m *Metrics) EntryDuplicate(role job.Role, kind string) {
	m.count(m.duplicate, 1, m.bounds.role(role), m.bounds.code("kind", kind))
}

// EntryNormalised counts a correction made to an accepted entry; note is one of
// the codes of job.Decoded.
func (m *Metrics) EntryNormalised(role job.Role, note string) {
	m.count(m.normalised, 1, m.bounds.role(role), m.bounds.code("note", note))
}

// EntriesLost counts pending entries that were deleted before their job began.
func (m *Metrics) EntriesLost(role job.Role, n int) {
	if n > 0 {
		m.count(m.lost, int64(n), m.bounds.role(role))
	}
}

// EntriesUnaccounted counts entries that were read, are not pending, and whose job
// has neither a row nor a run; kind says what was done about it, restored or
// reported.
func (m *Metrics) EntriesUnaccounted(role job.Role, kind string, n int) {
	if n > 0 {
		m.count(m.unaccounted, int64(n), m.bounds.role(role), m.bounds.code("kind", kind))
	}
}

// BridgeError counts a failure of the bridge; kind is a stable code.
func (m *Metrics) BridgeError(role job.Role, kind string) {
	m.count(m.bridgeErrors, 1, m.bounds.role(role), m.bounds.code("kind", kind))
}

// ActivityError counts a failed attempt of a role activity; kind is a stable
// code, an llm.Kind for example.
func (m *Metrics) ActivityError(role job.Role, kind string) {
	m.count(m.activityErrors, 1, m.bounds.role(role), m.bounds.code("kind", kind))
}

// Running changes the number of jobs running in this process.
func (m *Metrics) Running(role job.Role, delta int) {
	m.running.Add(context.Background(), int64(delta), metric.WithAttributes(m.bounds.role(role)))
}

// TotalWaiting changes the number of jobs that wait for a permit of MAX_TOTAL.
func (m *Metrics) TotalWaiting(role job.Role, delta int) {
	m.waiting.Add(context.Background(), int64(delta), metric.WithAttributes(m.bounds.role(role)))
}

// LLMCall records one call: how long it took, and the tokens it used where the
// endpoint said so (not 0). errKind is empty for an answered call, else a stable
// code such as an llm.Kind.
func (m *Metrics) LLMCall(role job.Role, model string, d time.Duration, prompt, completion int64, errKind string) {
	ctx := context.Background()
	attrs := []attribute.KeyValue{m.llmDuration.AttrRequestModel(m.bounds.model(model)), m.bounds.role(role)}
	if errKind != "" {
		kind := m.bounds.code("error.type", errKind).Value.AsString()
		m.llmDuration.Record(ctx, d.Seconds(), genaiconv.OperationNameChat, provider,
			append(attrs, m.llmDuration.AttrErrorType(genaiconv.ErrorTypeAttr(kind)))...)
		return
	}
	m.llmDuration.Record(ctx, d.Seconds(), genaiconv.OperationNameChat, provider, attrs...)
	if prompt > 0 {
		m.llmTokens.Record(ctx, prompt, genaiconv.OperationNameChat, provider, genaiconv.TokenTypeInput, attrs...)
	}
	if completion > 0 {
		m.llmTokens.Record(ctx, completion, genaiconv.OperationNameChat, provider, genaiconv.TokenTypeOutput, attrs...)
	}
}

// LLMFinished counts an answer by the reason the server gave for its end: length
// is an answer that was cut off. A reason nobody knows is counted as other.
func (m *Metrics) LLMFinished(role job.Role, reason string) {
	m.count(m.answers, 1, m.bounds.role(role), m.bounds.finishReason(reason))
}

// ObserveStreams sets what is asked for the numbers of the streams at each
// scrape. It gets two seconds; when it fails, executor_streams_up is 0 and the
// stream gauges are absent.
func (m *Metrics) ObserveStreams(stats func(context.Context) (map[job.Role]StreamStats, error)) {
	o := observer(stats)
	m.observe.Store(&o)
}

func (m *Metrics) count(c metric.Int64Counter, n int64, attrs ...attribute.KeyValue) {
	c.Add(context.Background(), n, metric.WithAttributes(attrs...))
}
