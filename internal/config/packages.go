package config

import (
	"cmp"
	"slices"
	"time"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/bridge"
	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/llm"
	"github.com/nodpt/executor/internal/store"
	"github.com/nodpt/executor/internal/stream"
	"github.com/nodpt/executor/internal/telemetry"
	"github.com/nodpt/executor/worker"
)

// Stream returns the settings of the Redis client.
func (c Config) Stream() stream.Config {
	_, connection := c.redis()
	return stream.Config{
		Connection: connection,
		CAFile:     c.RedisCAFile,
		Group:      c.ConsumerGroup,
		Consumer:   c.ConsumerName,
	}
}

// LLM returns the settings of the LLM client.
func (c Config) LLM() llm.Config {
	return llm.Config{
		Endpoint: c.LLMEndpoint,
		APIKey:   cmp.Or(c.LLMAPIKey, c.OpenAIAPIKey),
		Timeout:  c.LLMTimeout,

		AllowClearText: c.AllowInsecure,
	}
}

// Store returns the settings of the result store.
func (c Config) Store() store.Config { return store.Config{URL: c.DatabaseURL} }

// Bridge returns the settings of the bridge.
func (c Config) Bridge() bridge.Config {
	return bridge.Config{
		MaxInFlight:  c.BridgeMaxInFlight,
		ClaimMinIdle: c.ClaimMinIdle,
		ChatList:     c.ChatList,
		Updates:      stream.Updates,
	}
}

// Worker returns the settings of the workers, without queues, which the command
// line names.
func (c Config) Worker() worker.Config {
	slots := make(map[job.Role]int)
	for _, r := range c.perRole() {
		slots[r.role] = r.max
	}
	return worker.Config{
		Slots:        slots,
		Unlimited:    c.BridgeMaxInFlight,
		Total:        c.MaxTotal,
		DrainTimeout: c.DrainTimeout,
	}
}

// Roles returns what role activities look up: models, token limits, durations.
func (c Config) Roles() activities.Config {
	models, maxTokens := make(map[job.Role]string), make(map[job.Role]int)
	for _, r := range c.perRole() {
		models[r.role], maxTokens[r.role] = r.model, r.maxTokens
	}
	return activities.Config{
		Models:       models,
		DefaultModel: c.DefaultModel,
		ChatModels:   slices.Clone(c.ChatModels),
		MaxTokens:    maxTokens,
		LLMTimeout:   c.LLMTimeout,
		DrainTimeout: c.DrainTimeout,
		RetryFor:     c.RetryFor,
	}
}

// Encryption returns the keys of payloads in Temporal; the first one encrypts.
// None means that they stay in clear text.
func (c Config) Encryption() []codec.Key { return slices.Clone(c.keys) }

// CodecServer returns the settings of the codec server. Its token may be empty.
func (c Config) CodecServer() codec.ServerConfig {
	return codec.ServerConfig{Addr: c.CodecAddr, Token: c.CodecToken, Origin: c.CodecOrigin}
}

// Log returns the settings of the logger.
func (c Config) Log() telemetry.LogConfig {
	return telemetry.LogConfig{Level: c.LogLevel, Format: c.LogFormat}
}

// HTTP returns where metrics and health are served.
func (c Config) HTTP() telemetry.HTTPConfig {
	return telemetry.HTTPConfig{Addr: c.HTTPAddr, Explicit: c.isSet("HTTP_ADDR")}
}

// Metrics returns the models that become labels: all that are configured.
func (c Config) Metrics() telemetry.MetricsConfig {
	models := append([]string{c.DefaultModel}, c.ChatModels...)
	for _, r := range c.perRole() {
		models = append(models, r.model)
	}
	slices.Sort(models)
	models = slices.DeleteFunc(slices.Compact(models), func(m string) bool { return m == "" || m == "*" })
	return telemetry.MetricsConfig{Models: models}
}

// StopTimeout is how long the whole process may take to stop: DRAIN_TIMEOUT and
// twenty seconds. It is fx's stop timeout, and shorter than STOP_GRACE.
func (c Config) StopTimeout() time.Duration { return c.DrainTimeout + stopMargin }
