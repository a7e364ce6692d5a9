# Every target sees to its own set-up; stamps below .tools make that once.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GOLANGCI_LINT_VERSION := 2.15.0
BUF_VERSION := 1.73.0
GOVULNCHECK_VERSION := 1.8.0
BENCHSTAT_VERSION := v0.0.0-20260908200009-22c9c6c9d4da

# The folder of vectors, tokenizers and traces that some tests read. Without it
# they are skipped; with CI=true they fail.
ifdef SHARED
override SHARED := $(abspath $(SHARED))
export SHARED
endif

# The program knows its commit, unless this is no checkout that git would read
# (another owner's folder, an unpacked archive), where go build would fail.
BUILDVCS := $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)

# How long each fuzz target runs.
FUZZTIME ?= 10s
# Which benchmarks run, and how often.
BENCH ?= .
COUNT ?= 10

# The LMCache releases whose real workers the tests run: one of each wire era,
# in make test the two of them that engines run today.
LMCACHE_VERSIONS := 0.5.6 0.3.11
LMCACHE_OLDER := 0.3.9.post2

# Go with the folder of the Rust library, whose name changes with its content:
# Go's build cache sees changed flags, but no changed static library.
WITH_NATIVE = env=$$(prompt/native/build.sh env) && eval "$$env" &&
GOTEST = go test -race -shuffle=on -count=1

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: .tools/stamp/libzmq ## compile bin/firsttoken
	@$(WITH_NATIVE) go build $(BUILDVCS) -o bin/firsttoken ./cmd/firsttoken

# The name of the image, and the platform's own container engine.
IMAGE ?= firsttoken:dev

.PHONY: image
image: ## build the container image (IMAGE=firsttoken:dev) with docker or podman
	@for engine in docker podman; do \
		if $$engine info >/dev/null 2>&1; then \
			exec $$engine build --tag "$(IMAGE)" --build-arg VERSION="$$(git rev-parse --short HEAD 2>/dev/null || echo dev)" .; \
		fi; \
	done; \
	echo "make image needs docker or podman, and neither answers here: install one, or start its daemon (docker info says why)" >&2; exit 1

.PHONY: demo
demo: build .tools/envoy ## play the whole service on this machine (KEEP=1: and leave it up)
	@bin/firsttoken demo --envoy .tools/envoy $(if $(KEEP),--keep)

# How often each policy is run, and the seconds for one of the experiments'.
RUNS ?= 3
SCALE ?= 1

.PHONY: experiments
experiments: build .tools/envoy ## two experiments on Envoy, all policies in turn (RUNS=3 SCALE=1: three quarters of an hour); writes docs/experiments
	@bin/firsttoken experiments --envoy .tools/envoy --runs $(RUNS) --scale $(SCALE) --out docs/experiments

# The whole of what the service costs is measured in a quarter of an hour; a
# smaller SCALE is quicker and less exact.
.PHONY: bench-envoy
bench-envoy: TOKENIZER = $(or $(wildcard $(or $(SHARED),../shared)/tokenizers/qwen2.5),test/tokenizer)
bench-envoy: build .tools/envoy .tools/stamp/proxies ## requests per second and CPU beside plain Envoy and Python proxies (SCALE=1: a quarter of an hour); writes docs/benchmarks.md
	@$(WITH_NATIVE) FIRSTTOKEN_BENCHMARKS=$(CURDIR)/docs/benchmarks.md SCALE=$(SCALE) TOKENIZER=$(abspath $(TOKENIZER)) \
		go test -count=1 -timeout 90m -v -run TestBenchmarks ./test/overhead

.PHONY: bench-modes
bench-modes: build .tools/envoy ## what Envoy's body modes cost, for docs/gateways.md (two minutes)
	@$(WITH_NATIVE) FIRSTTOKEN_BODY_MODES=3 go test -count=1 -timeout 15m -v -run TestBodyModes ./test/overhead

.PHONY: test
test: build .tools/stamp/libzmq .tools/envoy .tools/stamp/lmcache .tools/stamp/coordinator .tools/stamp/kvevents ## run all tests, with real Envoy, LMCache and vLLM code
	@prompt/native/build.sh test
	@$(WITH_NATIVE) $(GOTEST) -timeout 15m ./...
	@cd test/manifests && go test -shuffle=on -count=1 .
	@go test -count=1 -run='^TestMD1$$' ./simulator/replay
	@cd test/alerts && go test -shuffle=on -count=1 .

.PHONY: test-lmcache
test-lmcache: .tools/stamp/libzmq .tools/stamp/lmcache-older ## run the real workers of older LMCache releases, which make test leaves out
	@$(WITH_NATIVE) FIRSTTOKEN_LMCACHE_OLDER=true $(GOTEST) -run Older ./test/lmcache

# The packages below test/ start Envoy and LMCache; test/ itself and the
# folder-finding test/shared do not.
.PHONY: unit
unit: .tools/stamp/libzmq ## run the tests that need neither Envoy nor network
	@prompt/native/build.sh test
	@$(WITH_NATIVE) $(GOTEST) $$(go list ./... | grep -v '/firsttoken/test/') ./test/shared

# Tokenizer folder of the model that the real engines serve.
TOKENIZER ?= $(or $(wildcard $(or $(SHARED),../shared)/tokenizers/qwen2.5),test/tokenizer)

.PHONY: e2e-vllm
e2e-vllm: build .tools/envoy .tools/stamp/vllm ## compare predictions with real vLLM engines on CPU (3.2 GB, half an hour); writes docs/fidelity.md
	@$(WITH_NATIVE) FIRSTTOKEN_E2E=1 TOKENIZER=$(abspath $(TOKENIZER)) FIDELITY=$(CURDIR)/docs/fidelity.md \
		go test -count=1 -timeout 90m -v -run TestFidelity ./test/vllm

.PHONY: experiments-simulated
experiments-simulated: build ## replay the shared traces and write docs/experiments/simulated.md (half an hour)
	@test/tools/simulated.sh bin/firsttoken "$${SHARED:-$(CURDIR)/../shared}"/traces docs/experiments/simulated.md docs/simulate.md

.PHONY: lint
lint: .tools/stamp/libzmq .tools/golangci-lint-$(GOLANGCI_LINT_VERSION) .tools/buf-$(BUF_VERSION) ## check the style of Go and protobuf files
	@$(WITH_NATIVE) .tools/golangci-lint run
	@cd test/manifests && $(CURDIR)/.tools/golangci-lint run --config $(CURDIR)/.golangci.yml
	@cd test/alerts && $(CURDIR)/.tools/golangci-lint run --config $(CURDIR)/.golangci.yml
	@.tools/buf lint
	@.tools/buf format --diff --exit-code

.PHONY: generate
generate: .tools/stamp/libzmq .tools/buf-$(BUF_VERSION) ## write the generated code and docs anew
	@.tools/buf generate
	@$(WITH_NATIVE) go generate ./...
	@$(WITH_NATIVE) examples/generate.sh

.PHONY: variants
variants: .tools/stamp/libzmq ## vet and build without Rust, without ZeroMQ, without cgo
	@$(WITH_NATIVE) test/tools/variants.sh

.PHONY: fuzz
fuzz: .tools/stamp/libzmq ## run every fuzz target for FUZZTIME
	@$(WITH_NATIVE) test/tools/fuzz.sh $(FUZZTIME)

# With each tokenizer of the shared folder, for FUZZTIME; what is found stays in
# prompt/native/testdata/fuzz and is tested from then on.
.PHONY: fuzz-engines
fuzz-engines: FUZZTIME := $(if $(filter 10s,$(FUZZTIME)),5m,$(FUZZTIME))
fuzz-engines: ## look for texts that fastokens and tokenizers encode differently (minutes)
	@$(WITH_NATIVE) for dir in "$${SHARED:-$(CURDIR)/../shared}"/tokenizers/*/; do \
		echo "fuzz engines with $$dir for $(FUZZTIME)"; \
		TOKENIZER=$$dir go test -run='^$$' -fuzz='^FuzzEngines$$' -fuzztime=$(FUZZTIME) -fuzzminimizetime=10x -timeout 0 ./prompt/native; \
	done

.PHONY: bench
bench: .tools/stamp/libzmq .tools/benchstat-$(BENCHSTAT_VERSION) ## run benchmarks (BENCH=regexp COUNT=10) and compare with the run before
	@test ! -f .tools/bench.txt || mv .tools/bench.txt .tools/bench.old.txt
	@$(WITH_NATIVE) go test -run='^$$' -bench='$(BENCH)' -benchmem -count=$(COUNT) $$(go list ./... | grep -v '/firsttoken/test/') | tee .tools/bench.txt
	@if test -f .tools/bench.old.txt; then .tools/benchstat .tools/bench.old.txt .tools/bench.txt; fi

.PHONY: vuln
vuln: .tools/stamp/libzmq .tools/govulncheck-$(GOVULNCHECK_VERSION) ## look for known vulnerabilities (needs the network)
	@$(WITH_NATIVE) .tools/govulncheck ./...

# Set-up. Files below .tools are stamps or carry their version in the name.

.tools/stamp/libzmq: test/tools/libzmq.sh
	@mkdir -p $(@D)
	@test/tools/libzmq.sh
	@touch $@

.tools/envoy: test/tools/envoy.sh test/tools/envoy.txt
	@mkdir -p $(@D)
	@test/tools/envoy.sh $@
	@touch $@

.tools/stamp/lmcache: test/lmcache/setup.sh
	@mkdir -p $(@D)
	@test/lmcache/setup.sh $(LMCACHE_VERSIONS)
	@touch $@

.tools/stamp/lmcache-older: test/lmcache/setup.sh
	@mkdir -p $(@D)
	@test/lmcache/setup.sh $(LMCACHE_OLDER)
	@touch $@

.tools/stamp/coordinator: test/coordinator/setup.sh
	@mkdir -p $(@D)
	@test/coordinator/setup.sh
	@touch $@

.tools/stamp/kvevents: test/kvevents/setup.sh
	@mkdir -p $(@D)
	@test/kvevents/setup.sh
	@touch $@

.tools/stamp/proxies: test/overhead/setup.sh test/overhead/requirements.txt
	@mkdir -p $(@D)
	@test/overhead/setup.sh
	@touch $@

.tools/stamp/vllm: test/vllm/setup.sh test/vllm/requirements.txt
	@mkdir -p $(@D)
	@test/vllm/setup.sh
	@touch $@

# go-tool installs the program $(1) of the module and version $(2) under its
# version's name, and links the plain name to it.
define go-tool
	@echo "building $(1) ($(2))"
	@GOBIN=$(CURDIR)/.tools/gobin GOFLAGS= go install $(2)
	@mv .tools/gobin/$(1) $@
	@ln -sfn $(@F) .tools/$(1)
endef

.tools/golangci-lint-$(GOLANGCI_LINT_VERSION):
	$(call go-tool,golangci-lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_LINT_VERSION))

.tools/buf-$(BUF_VERSION):
	$(call go-tool,buf,github.com/bufbuild/buf/cmd/buf@v$(BUF_VERSION))

.tools/govulncheck-$(GOVULNCHECK_VERSION):
	$(call go-tool,govulncheck,golang.org/x/vuln/cmd/govulncheck@v$(GOVULNCHECK_VERSION))

.tools/benchstat-$(BENCHSTAT_VERSION):
	$(call go-tool,benchstat,golang.org/x/perf/cmd/benchstat@$(BENCHSTAT_VERSION))
