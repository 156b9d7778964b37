package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodpt/executor/internal/app"
	"github.com/nodpt/executor/internal/config"
	"github.com/nodpt/executor/internal/doctor"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/internal/term"
)

func newDoctor() *cobra.Command {
	var (
		fix, ask bool
		timeout  time.Duration
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out why nothing works, and how to put it right",
		Long: `Find out why nothing works, and how to put it right: the settings, then Redis,
Temporal, the database and the LLM step by step, each asked what an executor with
these settings would ask. Whatever is wrong comes with its cause and with the
variable to set or the command to run. Nothing is changed, no model is asked, and no
secret is shown.

--fix puts right what is safe: consumer groups, the Temporal namespace, its
retention and search attributes, and the tables of an empty database. What it may
not do it leaves to you, as a command.
--ask sends one request for one token to each model.

Exit codes: 0 nothing is wrong (there may be warnings), 1 problems, 2 the settings
cannot be used, 3 the only problem is that a server does not answer.`,
		Example: `  executor doctor
  executor doctor --fix
  executor doctor -o json | jq '.[] | select(.state != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := outputFormat(cmd)
			if err != nil {
				return err
			}
			if timeout <= 0 {
				return &exitError{exitUsage, errors.New("--timeout must be positive")}
			}
			// A warning about the settings is part of the report, and so are mistakes.
			out := term.New(cmd.OutOrStdout(), format, config.Environ()["NO_COLOR"])
			examined, err := examine(config.Load(config.Environ()))
			if err != nil {
				return err
			}
			examined.Fix, examined.Ask = fix, ask
			if out.Terminal() && format == term.Table {
				fmt.Fprintf(cmd.ErrOrStderr(), "looking, for %s at most\n", timeout)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			results := doctor.Run(ctx, examined)
			if cmd.Context().Err() != nil {
				return &exitError{exitFailed, errors.New("interrupted")}
			}
			if err := printReport(out, results); err != nil {
				return err
			}
			if code := doctor.ExitCode(results); code != exitOK {
				return &exitError{code: code}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "put right what can be put right without harm")
	cmd.Flags().BoolVar(&ask, "ask", false, "ask each model for one token")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to look")
	outputFlag(cmd)
	return cmd
}

// outputFormat is the format that -o names.
func outputFormat(cmd *cobra.Command) (term.Format, error) {
	name, err := cmd.Flags().GetString("output")
	if err != nil {
		return "", err
	}
	format, err := term.ParseFormat(name)
	if err != nil {
		return "", &exitError{exitUsage, err}
	}
	return format, nil
}

// examine turns settings, and what is wrong with them, into what the doctor looks
// at.
func examine(cfg config.Config, loaded error) (doctor.Config, error) {
	examined := doctor.Config{Warnings: cfg.Warnings()}
	wrong := map[string]bool{}
	if loaded != nil {
		mistakes, ok := errors.AsType[*config.Errors](loaded)
		if !ok {
			return doctor.Config{}, &exitError{exitUsage, loaded}
		}
		for _, m := range mistakes.Mistakes {
			examined.Mistakes = append(examined.Mistakes, doctor.Mistake(m))
			wrong[m.Variable] = true
		}
	}
	from := map[string]config.Source{}
	for _, s := range cfg.Redacted() {
		from[s.Name] = s.Source
		switch {
		case s.Source == config.SourceDefault:
			continue
		case wrong[s.Name]:
			s.Value = "[not usable]" // it may be a secret in the wrong place
		}
		examined.Settings = append(examined.Settings, doctor.Setting{Name: s.Name, Value: s.Value})
	}
	if len(examined.Mistakes) > 0 {
		return examined, nil
	}
	options, err := app.TemporalOptions(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return doctor.Config{}, &exitError{exitUsage, err}
	}
	examined.Redis, examined.Store, examined.LLM, examined.Temporal = cfg.Stream(), cfg.Store(), cfg.LLM(), options
	examined.ChatList = cfg.ChatList
	examined.MaxInFlight = int64(cfg.BridgeMaxInFlight)
	examined.HTTPAddr = localAddr(cfg.HTTPAddr)
	examined.Models = models(cfg)
	examined.Variables = variables(cfg, from)
	return examined, nil
}

// variables names those in force. A value from a file is corrected there.
func variables(cfg config.Config, from map[string]config.Source) doctor.Variables {
	set := func(name string) bool { return cmp.Or(from[name], config.SourceDefault) != config.SourceDefault }
	named := func(name string) string {
		if from[name] == config.SourceFile {
			return name + "_FILE"
		}
		return name
	}
	v := doctor.Variables{Redis: named("REDIS_CONNECTION"), LLMKey: named("LLM_API_KEY")}
	if cfg.RedisURL != "" {
		v.Redis = named("REDIS_URL")
	}
	if cfg.LLMAPIKey == "" && cfg.OpenAIAPIKey != "" {
		v.LLMKey = named("OPENAI_API_KEY")
	}
	url := named("DATABASE_URL")
	v.DatabaseHost, v.DatabaseLogin, v.DatabaseName = url, url, url
	if !set("DATABASE_URL") && set("DB_HOST") {
		v.DatabaseHost, v.DatabaseName = "DB_HOST and DB_PORT", "DB_NAME"
		v.DatabaseLogin = "DB_USER and " + named("DB_PASSWORD")
	}
	return v
}

// models lists the models that the settings name, each once.
func models(cfg config.Config) []doctor.Model {
	var all []doctor.Model
	add := func(name, variable string, optional bool) {
		if name == "" || name == "*" {
			return
		}
		i := slices.IndexFunc(all, func(m doctor.Model) bool { return m.Name == name })
		if i < 0 {
			i = len(all)
			all = append(all, doctor.Model{Name: name, Optional: optional})
		}
		all[i].Variables = append(all[i].Variables, variable)
		all[i].Optional = all[i].Optional && optional
	}
	roles := cfg.Roles()
	for _, role := range job.Roles() {
		add(roles.Models[role], "MODEL_"+strings.ToUpper(string(role)), false)
	}
	add(roles.DefaultModel, "DEFAULT_MODEL", false)
	for _, name := range roles.ChatModels {
		add(name, "CHAT_MODELS", true)
	}
	return all
}

// wideSetting is how much of a value is shown: a certificate is long.
const wideSetting = 120

// printReport prints results for people, one line each and more for what is not
// as it should be, or as they are encoded.
func printReport(out *term.Printer, results []doctor.Result) error {
	if out.Format() != term.Table {
		return term.List(out, results)
	}
	const checks, states = 19, 7
	line := func(check, state, text string, c term.Color) error {
		return term.Event(out, nil, term.Cell{Value: check, Width: checks}, term.Cell{Value: state, Width: states, Color: c}, term.Cell{Value: text})
	}
	for i := 0; i < len(results); i++ {
		r := results[i]
		// What could not be looked at for one reason is one line.
		more := 0
		for r.State == doctor.Skipped && i+1 < len(results) && results[i+1].State == r.State && results[i+1].Cause == r.Cause {
			i++
			more++
		}
		if more > 0 {
			r.Cause += fmt.Sprintf(" (and %d more)", more)
		}
		errs := []error{line(r.Check, string(r.State), cmp.Or(r.Found, r.Cause), stateColor(r.State))}
		for _, s := range r.Settings {
			value := []rune(s.Value)
			if len(value) > wideSetting {
				value = append(value[:wideSetting-1], '…')
			}
			errs = append(errs, line("", "set", s.Name+"="+string(value), term.Faint))
		}
		if r.Fixed != "" {
			errs = append(errs, line("", "fixed", r.Fixed, term.Good))
		}
		if r.Found != "" && r.Cause != "" {
			errs = append(errs, line("", "cause", r.Cause, term.Faint))
		}
		for _, fix := range r.Fix {
			errs = append(errs, line("", "fix", fix, term.Good))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

func stateColor(s doctor.State) term.Color {
	switch s {
	case doctor.OK:
		return term.Good
	case doctor.Warning:
		return term.Busy
	case doctor.Problem:
		return term.Bad
	case doctor.Skipped:
		return term.Faint
	}
	return term.Plain
}
