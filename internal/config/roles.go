package config

import (
	"strings"

	"github.com/nodpt/executor/internal/job"
)

// roleSettings are the settings every role has: MAX_<ROLE>, MODEL_<ROLE> and
// MAX_TOKENS_<ROLE>.
type roleSettings struct {
	role      job.Role
	max       int
	model     string
	maxTokens int
}

// perRole lists them in the order of job.Roles.
func (c Config) perRole() []roleSettings {
	return []roleSettings{
		{job.Manager, c.MaxManager, c.ModelManager, c.MaxTokensManager},
		{job.Inspector, c.MaxInspector, c.ModelInspector, c.MaxTokensInspector},
		{job.Agent, c.MaxAgent, c.ModelAgent, c.MaxTokensAgent},
		{job.Chat, c.MaxChat, c.ModelChat, c.MaxTokensChat},
	}
}

// optionalModel: chat has other sources of a model.
func (r roleSettings) optionalModel() bool { return r.role == job.Chat }

func (r roleSettings) variable(prefix string) string { return variableOf(prefix, r.role) }

func variableOf(prefix string, r job.Role) string { return prefix + strings.ToUpper(string(r)) }
