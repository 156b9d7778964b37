# Everything a contributor runs. `make` or `make help` lists the targets.
#
# Two modules: the root module is what ships; cmd/devstack embeds a Temporal
# server and is only ever used on a developer's machine and in CI.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Length of one fuzz target's run: a number of inputs, because Go 1.26 can fail
# a run that ends by the clock for no other reason (go.dev/issue/75804, until 1.27).
FUZZTIME ?= 30000x
# Arguments for `make demo` and `make dev`.
ARGS ?=
# For `make bench-go`: a version to compare with, which benchmarks, how often and
# how long.
BASE      ?=
BENCH     ?= .
COUNT     ?= 6
BENCHTIME ?= 1s

BIN     := $(CURDIR)/bin
TOOLS   := $(BIN)/tools
RESULTS := $(CURDIR)/build/results

# Build, test and vet the nested module in the same way, or each of them compiles
# a Temporal server of its own. Tests leave vetting to `make lint`, because it
# looks at every package of that server as well.
DEVSTACK_GO := CGO_ENABLED=0 $(GO)

# Tools are pinned here and not in go.mod, which lists only what ships. Each is
# built once, into a directory that carries its version.
GOLANGCI_VERSION      := v2.15.0
GOVULNCHECK_VERSION   := v1.8.0
GOTESTSUM_VERSION     := v1.13.0
WORKFLOWCHECK_VERSION := v0.6.0
# The newest version whose module still holds every header its build needs.
OLLAMA_VERSION        := v0.6.5
# The newest version that its module holds all of: later ones want a directory that
# is a module of its own and not published.
TEMPORAL_CLI_VERSION  := v1.5.1
# The newest version that resolves; works with Debian's engine.
COMPOSE_VERSION       := v5.0.2
BENCHSTAT_VERSION     := v0.0.0-20260908200009-22c9c6c9d4da

GOLANGCI      := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
GOVULNCHECK   := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)/govulncheck
GOTESTSUM     := $(TOOLS)/gotestsum-$(GOTESTSUM_VERSION)/gotestsum
WORKFLOWCHECK := $(TOOLS)/workflowcheck-$(WORKFLOWCHECK_VERSION)/workflowcheck
OLLAMA        := $(TOOLS)/ollama-$(OLLAMA_VERSION)/ollama
TEMPORAL_CLI  := $(TOOLS)/temporal-$(TEMPORAL_CLI_VERSION)/temporal
COMPOSE       := $(TOOLS)/compose-$(COMPOSE_VERSION)/docker-compose
BENCHSTAT     := $(TOOLS)/benchstat-$(BENCHSTAT_VERSION)/benchstat

# scripts/test writes one result file per run there; .ci/run adds them up.
export GOTESTSUM RESULTS OLLAMA COMPOSE

DEVSTACK_SOURCES := $(shell find cmd/devstack -name '*.go' ! -name '*_test.go') \
	$(shell find cmd/devstack -name testdata -prune -o -type f \( -name '*.json' -o -name '*.yaml' -o -name '*.html' \) -print) \
	cmd/devstack/go.mod cmd/devstack/go.sum

# Packages with files or tests that exist only with the build tag failpoints.
FAILPOINT_TESTS := ./internal/failpoint ./internal/llm ./internal/store ./cmd/executor

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One recipe after the other, also under `make -j`: the compilers inside them use
# every core already, and tests that share the machine become slow, not fast.
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z][a-z0-9-]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

##@ Run it
.PHONY: demo dev build build-devstack
demo: build build-devstack ## run one job of each kind on a full local stack, print a table, exit
	@scripts/need --optional redis-server
	$(BIN)/devstack demo --executor $(BIN)/executor $(ARGS)

dev: build build-devstack ## the same stack, staying up until Ctrl-C
	@scripts/need --optional redis-server
	$(BIN)/devstack dev --executor $(BIN)/executor $(ARGS)

build: ## bin/executor, static and stripped
	GO="$(GO)" scripts/build $(BIN)/executor "$(VERSION)"

$(BIN)/bench: $(DEVSTACK_SOURCES)
	cd cmd/devstack && $(DEVSTACK_GO) build -buildvcs=false -ldflags "-s -w" -o $@ ./bench

build-devstack: $(BIN)/devstack ## bin/devstack (the first build compiles a Temporal server: 3 to 5 minutes)

$(BIN)/devstack: $(DEVSTACK_SOURCES)
	cd cmd/devstack && $(DEVSTACK_GO) build -buildvcs=false -ldflags "-s -w" -o $@ .

##@ Test it
.PHONY: test test-unit test-e2e test-stores test-ollama test-browser test-temporal-cli compose-smoke histories fuzz executor-race executor-chaos chaos chaos-short
test: test-unit test-e2e ## all tests of both modules, installing what they need

test-unit: $(GOTESTSUM) ## tests of the root module, under the race detector
	@scripts/need cc redis-server promtool
	CGO_ENABLED=1 scripts/test unit . -race ./...
	CGO_ENABLED=1 scripts/test failpoints . -race -tags failpoints $(FAILPOINT_TESTS)

test-e2e: $(GOTESTSUM) executor-race ## the built binary against a real Temporal server and a real Redis
	@scripts/need cc redis-server postgres sqlite3
	CGO_ENABLED=0 EXECUTOR_BINARY=$(BIN)/executor-race scripts/test e2e cmd/devstack -vet=off -timeout 20m ./...

test-stores: $(GOTESTSUM) ## the result store's suite on real Postgres and MariaDB servers
	@scripts/need cc postgres mariadb
	CGO_ENABLED=1 EXECUTOR_TEST_DATABASES=postgres,mysql scripts/test stores . -race ./internal/store/...
	CGO_ENABLED=1 EXECUTOR_TEST_DATABASES=postgres,mysql scripts/test stores-failpoints . -race -tags failpoints -run Failpoint ./internal/store

test-ollama: $(GOTESTSUM) $(OLLAMA) executor-race ## all roles against a real Ollama server with a tiny model
	@scripts/need cc redis-server
	CGO_ENABLED=0 EXECUTOR_BINARY=$(BIN)/executor-race scripts/test-ollama

test-browser: $(GOTESTSUM) executor-race ## Chromium in Temporal's Web UI; UPDATE_IMAGES=1 takes the pictures of docs/images
	@scripts/need cc redis-server chromium
	CGO_ENABLED=0 EXECUTOR_BINARY=$(BIN)/executor-race \
		scripts/test browser cmd/devstack -vet=off -tags browser -run '^TestBrowser' ./internal/e2e

test-temporal-cli: $(GOTESTSUM) $(TEMPORAL_CLI) executor-race ## failed jobs retried by the real Temporal CLI, and the calls of docker-compose.yml
	@scripts/need cc redis-server
	CGO_ENABLED=0 EXECUTOR_BINARY=$(BIN)/executor-race TEMPORAL_CLI=$(TEMPORAL_CLI) \
		scripts/test temporal-cli cmd/devstack -vet=off -tags temporalcli -run 'TheTemporalCLI$$' ./internal/e2e

compose-smoke: $(GOTESTSUM) $(COMPOSE) build-devstack ## docker-compose.yml on a Docker engine; one is started where none answers
	@scripts/need redis-server postgres promtool
	$(GO) mod download
	scripts/compose-smoke

chaos: $(GOTESTSUM) executor-chaos build ## the fault suite; CASE=F11 runs one row, SEED=1,2 other random schedules
	@scripts/need redis-server postgres
	scripts/chaos

chaos-short: $(GOTESTSUM) executor-chaos build ## the fault suite with short outages, 10 minutes at most
	@scripts/need redis-server postgres
	SHORT=1 scripts/chaos

histories: executor-race ## record the histories that the replay test runs against
	@scripts/need cc redis-server
	cd cmd/devstack && CGO_ENABLED=0 EXECUTOR_BINARY=$(BIN)/executor-race $(GO) test -tags record -count=1 -run TestRecordHistories ./internal/e2e

fuzz: ## every fuzz target for FUZZTIME inputs (default 30000x)
	FUZZTIME=$(FUZZTIME) scripts/fuzz

executor-race:
	@scripts/need cc
	CGO_ENABLED=1 $(GO) build -buildvcs=false -race -ldflags "-X main.version=$(VERSION)" -o $(BIN)/executor-race ./cmd/executor

executor-chaos: ## bin/executor-chaos: race detector, and crash points that EXEC_FAIL arms
	@scripts/need cc
	CGO_ENABLED=1 $(GO) build -buildvcs=false -race -tags failpoints -ldflags "-X main.version=$(VERSION)" -o $(BIN)/executor-chaos ./cmd/executor

##@ Measure it
.PHONY: bench bench-quick bench-go bench-go-once
bench-quick: build build-devstack $(BIN)/bench ## ratios in at most five minutes; the last line is JSON
	@scripts/need redis-server
	@$(BIN)/bench quick --executor $(BIN)/executor --devstack $(BIN)/devstack --data $(CURDIR)/build/bench

bench: build build-devstack $(BIN)/bench ## everything that docs/benchmarks.md shows, and that page; more than an hour
	@scripts/need redis-server postgres
	scripts/bench

bench-go: $(BENCHSTAT) ## Go benchmarks of the hot paths; BASE=<git ref> compares with that version
	@scripts/need redis-server
	GO="$(GO)" BENCHSTAT=$(BENCHSTAT) BASE="$(BASE)" BENCH="$(BENCH)" COUNT="$(COUNT)" BENCHTIME="$(BENCHTIME)" scripts/bench-go

bench-go-once: ## each of them a single time, to see that it works
	@scripts/need cc redis-server
	GO="$(GO)" scripts/bench-go once

##@ Check it
.PHONY: lint fmt tidy tidy-check vuln check-binary
lint: $(GOLANGCI) $(WORKFLOWCHECK) ## linters, workflow determinism, forbidden strings
	scripts/forbidden
	$(GOLANGCI) run ./...
	$(GOLANGCI) run --build-tags failpoints $(FAILPOINT_TESTS)
	$(GO) vet -tags failpoints ./...
	$(GOLANGCI) run --build-tags compose ./deploy/...
	$(WORKFLOWCHECK) ./workflows/...
	cd cmd/devstack && $(DEVSTACK_GO) vet -tags ollama,record,chaos,temporalcli,browser ./...

fmt: $(GOLANGCI) ## format the code of both modules
	$(GOLANGCI) fmt
	cd cmd/devstack && $(GOLANGCI) fmt

tidy: ## go mod tidy in both modules
	$(GO) mod tidy
	cd cmd/devstack && $(GO) mod tidy

tidy-check: ## fail where go.mod or go.sum is not tidy
	$(GO) mod tidy -diff
	cd cmd/devstack && $(GO) mod tidy -diff

vuln: $(GOVULNCHECK) ## known vulnerabilities the executor's code reaches
	scripts/vuln $(GOVULNCHECK)

check-binary: build ## what bin/executor links, and its size
	scripts/check-binary $(BIN)/executor

##@ Clean up
.PHONY: clean
clean: ## remove what was built (tools stay; `rm -rf bin` removes them too)
	rm -rf $(CURDIR)/build $(BIN)/executor $(BIN)/executor-race $(BIN)/executor-chaos $(BIN)/devstack $(BIN)/bench

$(GOLANGCI):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

$(GOVULNCHECK):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)

$(GOTESTSUM):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install gotest.tools/gotestsum@$(GOTESTSUM_VERSION)

$(WORKFLOWCHECK):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install go.temporal.io/sdk/contrib/tools/workflowcheck@$(WORKFLOWCHECK_VERSION)

# Built from its own module like the other tools; takes about two minutes.
$(OLLAMA):
	@scripts/need ollama-build
	CGO_ENABLED=1 CGO_CPPFLAGS=-I/usr/include/stb GOBIN=$(@D) $(GO) install github.com/ollama/ollama@$(OLLAMA_VERSION)

# The command is called cmd there, and docker finds its plugins by their name.
$(COMPOSE):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install -ldflags "-s -w -X github.com/docker/compose/v5/internal.Version=$(COMPOSE_VERSION)" \
		github.com/docker/compose/v5/cmd@$(COMPOSE_VERSION)
	mv $(@D)/cmd $@

$(BENCHSTAT):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT_VERSION)

# With the server it can run, as large as cmd/devstack; takes about five minutes.
$(TEMPORAL_CLI):
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install -ldflags "-s -w" github.com/temporalio/cli/cmd/temporal@$(TEMPORAL_CLI_VERSION)
