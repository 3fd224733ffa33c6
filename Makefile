# Shelfwire. `make help` lists what there is.
GO       ?= go
ARGS     ?=
# Tools are pinned here and built by the Go toolchain, so that nothing else needs to be installed.
LINT     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BIN      := $(CURDIR)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test integration lint generate verify bench torture build

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Run the whole pipeline on embedded parts for a minute (ARGS='--for 20s')
	@$(GO) build -o $(BIN)/shelfwire ./cmd/shelfwire && exec $(BIN)/shelfwire demo $(ARGS)

test: ## Run all tests that need no JVM, with the race detector
	$(GO) vet ./...
	$(GO) test -race -timeout 45m $(ARGS) ./...

# On a real broker an example of a property test takes half a second: fewer of them.
REAL := SHELFWIRE_TEST_KAFKA=apache $(GO) test -count=1 $(ARGS)
integration: ## Run what speaks to Postgres or Kafka on Postgres 17 and 18 and Apache Kafka, and bound capture's memory (needs Java 17 and Maven)
	$(REAL) -timeout 10m ./deploy/embedded/apachekafka ./deploy/embedded/embeddedtest
	SHELFWIRE_TEST_POSTGRES=17 $(GO) test -count=1 $(ARGS) -timeout 30m ./connectors/postgres ./pipeline -rapid.checks=10
	SHELFWIRE_TEST_POSTGRES=18 $(REAL) -timeout 30m ./connectors/... ./pipeline -rapid.checks=10
	SHELFWIRE_TEST_POSTGRES=18 $(REAL) -timeout 20m ./cmd/shelfwire/torture -run 'TestTorture$$|TestCaptureTorture$$'
	$(GO) run ./cmd/shelfwire bench --strict --only transaction

torture: ## Kill every part at random during traffic, then compare row by row (SEED= repeats a run, SCHEDULES= says how many of capture and of the middle)
	SHELFWIRE_TORTURE=1 SEED=$(SEED) SCHEDULES=$(SCHEDULES) $(GO) test -run Torture -timeout 120m -v $(ARGS) ./cmd/shelfwire/torture
	SHELFWIRE_TEST_FANOUT=1000000 $(GO) test -count=1 -run TestAFanoutThroughKills -timeout 60m -v ./pipeline

bench: ## Measure speed and points; prints a table and writes bench.json
	$(GO) run ./cmd/shelfwire bench --out bench.json $(ARGS)

lint: $(BIN)/golangci-lint ## Check style and the import rules
	$(BIN)/golangci-lint run ./...

$(BIN)/golangci-lint:
	GOBIN=$(BIN) $(GO) install $(LINT)

generate: ## Make generated files anew
	$(GO) generate ./...
	$(GO) mod tidy

verify: generate ## Fail when generated files are not up to date
	git diff --exit-code

build: ## Build the binary into bin/
	$(GO) build -o $(BIN)/shelfwire ./cmd/shelfwire
