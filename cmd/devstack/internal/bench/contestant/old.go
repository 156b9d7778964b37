package contestant

import (
	"context"
	"log/slog"
)

// old is the predecessor as it was: one consumer, which asks the LLM, adds the
// update and acknowledges the entry, one job after the other. It keeps nothing of
// a job, and acknowledges one that has failed like any other. Unlike this one, the
// original was written in .NET.
type old struct {
	streams streams
	llm     *llm
	log     *slog.Logger
}

func runOld(ctx context.Context, cfg Config, s *site) error {
	o := old{streams: newStreams(cfg.Name, cfg.Redis), log: logger()}
	defer o.streams.close()
	var err error
	if o.llm, err = newLLM(cfg.LLM, 1); err != nil {
		return err
	}
	defer o.llm.close()
	if err := o.streams.createGroup(ctx); err != nil {
		return err
	}
	s.ready()
	for ctx.Err() == nil {
		entries, err := o.streams.read(ctx)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			err := o.do(ctx, jobOf(entry.Values))
			if ctx.Err() != nil {
				return nil //nolint:nilerr // not done, and not acknowledged
			}
			if err != nil {
				o.log.WarnContext(ctx, "a job is lost", slog.Any("error", err))
			}
			if err := o.streams.acknowledge(ctx, entry.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o old) do(ctx context.Context, j Job) error {
	answer, err := o.llm.ask(ctx, j)
	if err != nil {
		return err
	}
	return o.streams.publish(ctx, j, answer)
}
