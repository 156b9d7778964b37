package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/nodpt/executor/internal/llm"
)

const (
	llmConnect = "llm.connect"
	llmKey     = "llm.key"
	llmPath    = "llm.path"
	llmModels  = "llm.models"
	llmAnswers = "llm.answers"
)

func llmChecks(ask bool) []string {
	checks := []string{llmConnect, llmKey, llmPath, llmModels}
	if ask {
		checks = append(checks, llmAnswers)
	}
	return checks
}

// llmPatient is one model server.
type llmPatient struct {
	*doctor
	*sheet
	client *llm.Client
}

func (d *doctor) llm(ctx context.Context, s *sheet) {
	c, err := llm.New(d.cfg.LLM)
	if err != nil {
		s.stop(Result{Check: llmConnect, State: Problem, Found: "the endpoint is not usable", Cause: err.Error(), Fix: []string{"correct LLM_ENDPOINT"}})
		return
	}
	defer c.Close()
	p := &llmPatient{doctor: d, sheet: s, client: c}
	if !p.endpoint(ctx) {
		return
	}
	p.models(ctx)
	if d.cfg.Ask {
		p.answers(ctx)
	}
}

// server is scheme and host of the endpoint.
func (p *llmPatient) server() string {
	u, err := url.Parse(p.client.Endpoint())
	if err != nil {
		return p.client.Endpoint()
	}
	return u.Scheme + "://" + u.Host
}

// endpoint finds out whether a chat endpoint answers at the configured URL.
func (p *llmPatient) endpoint(ctx context.Context) bool {
	err := p.client.CheckEndpoint(ctx)
	e, _ := errors.AsType[*llm.Error](err)
	if e != nil && (e.Status == 0 || e.Code == llm.CodeHTTPSExpected) {
		p.stop(p.notConnected(e))
		return false
	}
	p.ok(llmConnect, "%s answers", p.server())
	switch {
	case e == nil:
		p.keyAccepted()
		p.ok(llmPath, "%s is a chat endpoint", p.client.Endpoint())
		return true
	case llm.KeyRefused(e):
		p.stop(p.keyRefused(e))
	case e.Kind == llm.Quota:
		p.stop(Result{
			Check: llmKey, State: Problem, Found: "the account is used up", Cause: answered(e),
			Fix: []string{"pay, or set " + p.cfg.Variables.LLMKey + " to a key of another account"},
		})
	case e.Kind == llm.RateLimited:
		p.keyAccepted()
		p.add(Result{
			Check: llmPath, State: Warning, Found: "the server limits requests just now", Cause: answered(e),
			Fix: []string{"wait, and set MAX_TOTAL to what the server allows at once"},
		})
		return true
	case e.Kind == llm.ServerError:
		p.keyAccepted()
		p.stop(Result{
			Check: llmPath, State: Problem, Found: "the server has trouble", Unreachable: true,
			Cause: answered(e) + ": it is loading a model, or what is behind its proxy is down",
			Fix:   []string{"see the log of the LLM server"},
		})
	default:
		p.keyAccepted()
		p.stop(p.wrongPath(ctx, e))
	}
	return false
}

// answered is the status of an answer and its code.
func answered(e *llm.Error) string {
	text := fmt.Sprintf("it answers with status %d", e.Status)
	if status := http.StatusText(e.Status); status != "" {
		text += " (" + status + ")"
	}
	if e.Code != "" {
		text += ", " + e.Code
	}
	return text
}

func (p *llmPatient) keyAccepted() {
	if p.cfg.LLM.APIKey == "" {
		p.ok(llmKey, "none is set, and none is asked for")
		return
	}
	p.ok(llmKey, "the server does not refuse the key in %s", p.cfg.Variables.LLMKey)
}

func (p *llmPatient) keyRefused(e *llm.Error) Result {
	r := Result{
		Check: llmKey, State: Problem, Found: "the server refuses the key in " + p.cfg.Variables.LLMKey, Cause: answered(e),
		Fix: []string{"set " + p.cfg.Variables.LLMKey + " to a key that the server accepts"},
	}
	if p.cfg.LLM.APIKey == "" {
		r.Found = "the server asks for a key, and none is set"
		r.Fix = []string{"set LLM_API_KEY"}
	}
	return r
}

func (p *llmPatient) notConnected(e *llm.Error) Result {
	r := Result{Check: llmConnect, State: Problem, Found: "no answer from " + p.server(), Cause: e.Code}
	switch e.Code {
	case "connection_refused":
		r.Cause = "connection refused: nobody listens there"
	case "name_not_resolved":
		r.Cause = "the host's name has no address"
	case "connect_timeout", "":
		r.Cause = "no answer in time"
	case "tls_certificate":
		r.Cause = "the server's certificate is not accepted"
		r.Fix = []string{"let the server use a certificate for its name, of an authority this system trusts (SSL_CERT_FILE names others)"}
		return r
	case "tls", "https_to_http_port":
		r.Cause = "the server does not speak TLS at that port"
		r.Fix = []string{"set LLM_ENDPOINT=" + shell(strings.Replace(p.client.Endpoint(), "https://", "http://", 1)) + " if that may travel in clear text, or correct the port"}
		return r
	case llm.CodeHTTPSExpected:
		r.Found, r.Cause = "the server wants https", "LLM_ENDPOINT is plain http"
		r.Fix = []string{"set LLM_ENDPOINT=" + shell(strings.Replace(p.client.Endpoint(), "http://", "https://", 1))}
		return r
	case "address_refused":
		r.Cause = "the name leads to a link-local or cloud metadata address"
		r.Fix = []string{"correct the host in LLM_ENDPOINT"}
		return r
	}
	r.Unreachable = true
	r.Fix = []string{"start the LLM server there, or correct host and port in LLM_ENDPOINT"}
	return r
}

func (p *llmPatient) wrongPath(ctx context.Context, e *llm.Error) Result {
	r := Result{
		Check: llmPath, State: Problem, Found: p.client.Endpoint() + " is no chat endpoint", Cause: answered(e),
		Fix: []string{"set LLM_ENDPOINT to the full URL of the chat endpoint; most end in /v1/chat/completions"},
	}
	switch found, ok := p.client.FindEndpoint(ctx); {
	case ok:
		r.Cause += "; the same server has one at " + found
		r.Fix = []string{"set LLM_ENDPOINT=" + shell(found)}
	case e.Code == llm.CodeRedirect:
		r.Cause += "; redirects are not followed, because the key would go with them"
	default:
		if models, err := p.client.Models(ctx); err == nil {
			r.Cause += fmt.Sprintf("; the server lists %s, so only the path is wrong", count(len(models), "model", "models"))
		}
	}
	return r
}

// models looks for the models that the settings name.
func (p *llmPatient) models(ctx context.Context) {
	models, err := p.client.Models(ctx)
	e, _ := errors.AsType[*llm.Error](err)
	switch {
	case e == nil:
	case llm.KeyRefused(e):
		p.add(p.keyRefused(e))
		p.skip(llmModels, "%s comes first", llmKey)
		return
	case e.Code == llm.CodeNoList:
		p.add(Result{
			Check: llmModels, State: Warning, Found: "the server lists no models", Cause: answered(e) + " where most have their list",
			Fix: []string{"ask each model for one token: executor doctor --ask"},
		})
		return
	default:
		p.add(Result{
			Check: llmModels, State: Warning, Found: "the models cannot be listed", Cause: e.Error(),
			Fix: []string{"see the log of the LLM server"},
		})
		return
	}
	var there []string
	missing := false
	for _, m := range p.cfg.Models {
		if llm.Offers(models, m.Name) {
			there = append(there, m.Name)
			continue
		}
		missing = true
		p.add(p.missingModel(m, models))
	}
	loaded := slices.IndexFunc(models, func(m llm.Model) bool { return m.Loaded })
	switch {
	case missing:
	case loaded >= 0:
		p.ok(llmModels, "the server answers any name with the model it has loaded, %s", models[loaded].ID)
	default:
		p.ok(llmModels, "the server has %s", list(there))
	}
}

// shownModels is how many of a server's models a hint names: gateways have
// hundreds.
const shownModels = 8

func (p *llmPatient) missingModel(m Model, models []llm.Model) Result {
	r := Result{
		Check: llmModels, State: Problem, Found: "the server has no model " + m.Name,
		Cause: list(m.Variables) + " name it; jobs that need it wait until it is there",
	}
	if len(m.Variables) == 1 {
		r.Cause = m.Variables[0] + " names it; jobs that need it wait until it is there"
	}
	if m.Optional {
		r.State = Warning
	}
	var names []string
	for _, listed := range models {
		names = append(names, listed.ID)
	}
	slices.Sort(names)
	if more := len(names) - shownModels; more > 0 {
		names = append(names[:shownModels], fmt.Sprintf("%d more", more))
	}
	if len(names) == 0 {
		r.Cause += "; it lists none at all"
	} else {
		r.Fix = []string{"set " + list(m.Variables) + " to one that is there: " + strings.Join(names, ", ")}
	}
	owner := func(name string) bool {
		return slices.ContainsFunc(models, func(l llm.Model) bool { return l.Owner == name })
	}
	switch u, err := url.Parse(p.client.Endpoint()); {
	case owner("library"), err == nil && u.Port() == "11434":
		r.Fix = append(r.Fix, "or, on the Ollama server: "+command("ollama", "pull", m.Name))
	case owner("vllm"):
		r.Fix = append(r.Fix, "or start vLLM with "+command("--served-model-name", m.Name))
	case len(r.Fix) == 0:
		r.Fix = []string{"load the model on the LLM server"}
	}
	return r
}

// answers asks every model for one token.
func (p *llmPatient) answers(ctx context.Context) {
	var fine []string
	failed := false
	for _, m := range p.cfg.Models {
		_, err := p.client.Complete(ctx, llm.Request{Model: m.Name, Prompt: "Say yes.", MaxTokens: 1})
		if err == nil {
			fine = append(fine, m.Name)
			continue
		}
		failed = true
		r := Result{
			Check: llmAnswers, State: Problem, Found: "model " + m.Name + " does not answer", Cause: err.Error(),
			Fix: []string{"see the log of the LLM server"},
		}
		if e, ok := errors.AsType[*llm.Error](err); ok {
			switch {
			case llm.KeyRefused(e):
				r.Fix = []string{"set " + p.cfg.Variables.LLMKey + " to a key that may use this model"}
			case e.Kind == llm.Misconfigured:
				r.Fix = []string{"set " + list(m.Variables) + " to a model that the server has"}
			case e.Kind == llm.Timeout:
				r.Unreachable = true
				r.Fix = []string{"give it more time, for a model that has to be loaded first: executor doctor --ask --timeout 5m"}
			case e.Kind == llm.Unreachable, e.Kind == llm.ServerError, e.Kind == llm.RateLimited:
				r.Unreachable = true
			}
		}
		p.add(r)
	}
	if !failed {
		p.ok(llmAnswers, "%s answered", list(fine))
	}
}
