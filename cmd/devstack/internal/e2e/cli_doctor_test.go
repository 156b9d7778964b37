package e2e

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/proc"
)

// TestDoctor runs the scripts of doctor, each with a stack of its own that has
// nothing wrong with it, as the user "executor" of Redis: what the doctor asks
// needs no more rights than an executor has.
func TestDoctor(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "script", "doctor-*.txtar"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundleWith(t, harness.Options{Durable: true, Postgres: strings.Contains(name, "postgres")})
			s := &doctorScript{retryScript: retryScript{b}}
			testscript.RunT(inline{t}, testscript.Params{Files: []string{file}, Setup: s.setup, Cmds: s.commands()})
		})
	}
}

// doctorScript adds to the commands of the other scripts.
type doctorScript struct {
	retryScript
	running []*proc.Process
}

func (s *doctorScript) setup(env *testscript.Env) error {
	if err := s.retryScript.setup(env); err != nil {
		return err
	}
	env.Setenv("REDIS_CONNECTION", s.RedisConnection(s.RedisServer.Address()))
	env.Setenv("REDIS_ADDRESS", s.RedisServer.Address())
	env.Setenv("LLM_ADDRESS", s.LLM.Address)
	// Nobody listens there, nor where an executor of these settings would.
	env.Setenv("NOBODY", proc.Loopback(s.Port()))
	env.Setenv("HTTP_ADDR", proc.Loopback(s.Port()))
	env.Setenv("MAX_TOTAL", "8") // without any limit there is a warning
	return nil
}

func (s *doctorScript) commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	commands := s.retryScript.commands()
	maps.Copy(commands, map[string]func(ts *testscript.TestScript, neg bool, args []string){
		// up ARGS… runs an executor, about which the doctor is asked.
		"up": func(ts *testscript.TestScript, _ bool, args []string) {
			e := s.Launch(nil, args...)
			s.Ready(e)
			s.running = append(s.running, e.Process)
			ts.Setenv("HTTP_ADDR", strings.TrimPrefix(e.Health, "http://"))
		},
		// down ends the one that was started last.
		"down": func(*testscript.TestScript, bool, []string) {
			s.Stop(s.running[len(s.running)-1])
			s.running = s.running[:len(s.running)-1]
		},
		// redis ARGS… is what somebody does who administers Redis.
		"redis": func(ts *testscript.TestScript, _ bool, args []string) {
			words := make([]any, len(args))
			for i, w := range args {
				words[i] = w
			}
			ts.Check(s.Redis.Do(s.T.Context(), words...).Err())
		},
		// bare makes a stranger's namespace the one of the commands.
		"bare": func(ts *testscript.TestScript, _ bool, _ []string) {
			ts.Setenv("TEMPORAL_NAMESPACE", newNamespace(s.T))
		},
		// secret VARIABLE TEXT names a file that holds a secret.
		"secret": func(ts *testscript.TestScript, _ bool, args []string) {
			path := ts.MkAbs(args[0])
			ts.Check(os.WriteFile(path, []byte(args[1]+"\n"), 0o600))
			ts.Setenv(args[0], path)
		},
		"kill-postgres":    func(*testscript.TestScript, bool, []string) { s.Postgres.Kill() },
		"restart-postgres": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(s.Postgres.Restart(s.T.Context())) },
		"sql": func(ts *testscript.TestScript, _ bool, args []string) {
			_, err := s.QueryRows(s.T.Context(), args[0])
			ts.Check(err)
		},
		// database USER PASSWORD NAME is what DATABASE_URL names; - stays as it is.
		"database": func(ts *testscript.TestScript, _ bool, args []string) {
			u, err := url.Parse(s.Postgres.URL(s.Postgres.Address()))
			ts.Check(err)
			user := u.User.Username()
			password, _ := u.User.Password()
			for i, part := range []*string{&user, &password, &u.Path} {
				if args[i] != "-" {
					*part = args[i]
				}
			}
			u.User = url.UserPassword(user, password)
			ts.Setenv("DATABASE_URL", u.String())
		},
		// healthy waits until the doctor finds nothing wrong.
		"healthy": func(ts *testscript.TestScript, _ bool, _ []string) {
			s.Wait("a healthy stack", func(context.Context) error {
				if err := ts.Exec("executor", "doctor", "-o", "jsonl"); err != nil {
					return errors.New(ts.ReadFile("stdout"))
				}
				if out := ts.ReadFile("stdout"); strings.Contains(out, harness.Canary) {
					ts.Fatalf("a secret is shown: %s", out)
				}
				return nil
			})
		},
		// says PATTERN waits until the doctor does.
		"says": func(ts *testscript.TestScript, _ bool, args []string) {
			pattern := regexp.MustCompile("(?m)" + args[0])
			s.Wait("report with "+args[0], func(context.Context) error {
				_ = ts.Exec("executor", "doctor") // the output tells
				if out := ts.ReadFile("stdout"); !pattern.MatchString(out) {
					return errors.New(out)
				}
				return nil
			})
		},
	})
	return commands
}
