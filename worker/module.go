package worker

import (
	"log/slog"

	"go.temporal.io/sdk/client"
	"go.uber.org/fx"

	"github.com/nodpt/executor/activities"
	"github.com/nodpt/executor/internal/job"
)

// Fatal ends the process: it is told why a worker cannot go on.
type Fatal func(error)

// EndpointKey names the LLM endpoint of this process among the shared cool-downs.
type EndpointKey string

type callsParams struct {
	fx.In

	Config      activities.Config
	LLM         activities.Completer
	Gate        activities.Gate
	AnswerStore activities.AnswerStore
	CoolDown    activities.SharedCoolDown
	Endpoint    EndpointKey
	Metrics     activities.RunMetrics
}

func newCalls(p callsParams) Calls {
	return Calls{
		Config:  p.Config,
		LLM:     p.LLM,
		Gate:    p.Gate,
		Answers: activities.NewAnswers(p.AnswerStore),
		Cool:    activities.NewCoolDown(string(p.Endpoint), p.CoolDown),
		Metrics: p.Metrics,
	}
}

type poolParams struct {
	fx.In

	Config     Config
	Client     client.Client
	Components []Component `group:"components"`
	Log        *slog.Logger
	Fatal      Fatal
}

func newPool(p poolParams) (*Pool, error) {
	return NewPool(p.Config, p.Client, p.Components, Interceptors(), p.Log, p.Fatal)
}

// Module runs the pool. Adding a role is one more line here, next to the role's
// name in internal/job.
func Module() fx.Option {
	return fx.Module("worker",
		fx.Provide(newCalls, newPool),
		component(NewWorkflows),
		component(role(job.Manager)),
		component(role(job.Inspector)),
		component(role(job.Agent)),
		component(role(job.Chat)),
		fx.Invoke(func(lc fx.Lifecycle, p *Pool) {
			lc.Append(fx.StartStopHook(p.Start, p.Stop))
		}),
	)
}

func role(r job.Role) func(Config, Calls) Component {
	return func(cfg Config, c Calls) Component { return NewRole(cfg, r, c) }
}

func component(constructor any) fx.Option {
	return fx.Provide(fx.Annotate(constructor, fx.ResultTags(`group:"components"`)))
}
