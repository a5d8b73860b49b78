# Every target does its own set-up. `make help` lists them.
#
# Two target folders: `target/` holds what is released, `target/sandbox/` the builds that may speak to the simulator
# (they check nobody's certificate). Neither rebuilds the other.

SHELL := /bin/bash
CARGO ?= cargo
RELEASED := -p control-plane -p data-plane -p standalone
SANDBOX_DIR := target/sandbox
SANDBOX := --workspace --features sandbox --target-dir $(SANDBOX_DIR)
BIN := $(SANDBOX_DIR)/debug
# Tests need the programs too. Built together, both have the same dependencies, compiled once.
BUILD ?= --bins

BENCH = scripts/postgres with $(SANDBOX_DIR)/release/bench

.PHONY: help demo run smoke test baileys fuzz-api test-released chaos bench bench-quick bench-build lint deny openapi openapi-lint hooks build-sandbox

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build-sandbox:
	@$(CARGO) build $(SANDBOX) $(BUILD)

demo: build-sandbox ## simulator + Switchboard + a guided tour; stays up
	@$(BIN)/standalone demo

smoke: build-sandbox ## the same tour, then exit 0 or 1 with a table of steps and times
	@$(BIN)/standalone smoke

run: ## Switchboard on the real WhatsApp, with embedded defaults
	@$(CARGO) run -p standalone --bin standalone -- run

test: BUILD = --bins --tests
test: build-sandbox baileys ## unit, property and whole-server tests, on SQLite and on a PostgreSQL, a Redis and an S3 of its own
	@POSTGRES_THROWAWAY=1 scripts/postgres with scripts/redis with scripts/s3 with $(CARGO) nextest run $(SANDBOX) --no-fail-fast
	@scripts/fuzz-api $(BIN) --examples 10 --seed 1
	@$(MAKE) --no-print-directory test-released openapi-lint

fuzz-api: build-sandbox ## schemathesis over the whole API, 200 examples an operation; FUZZ='--postgres --seed 7' for more
	@scripts/fuzz-api $(BIN) $(FUZZ)

baileys: ## installs the independent client, where npm is
	@command -v npm >/dev/null || { echo '*** npm is not here: nothing will be tested against Baileys ***'; exit 0; }; \
	test bench/peers/baileys/node_modules/.package-lock.json -nt bench/peers/baileys/package-lock.json || \
	npm ci --silent --no-audit --no-fund --prefix bench/peers/baileys

test-released: ## what is released refuses the simulator, and doesn't carry the feature that would let it
	@scripts/released-features
	@$(CARGO) nextest run --workspace --target-dir $(SANDBOX_DIR) --test released

chaos: build-sandbox ## the long fault runs: kills and outages, on SQLite and PostgreSQL; five minutes at the rate limit
	@scripts/postgres with scripts/redis with $(CARGO) nextest run $(SANDBOX) --run-ignored only -E '(package(standalone) or package(control-plane)) and test(/chaos/)' --test-threads 1 --no-capture

bench-build: ## what the benches measure, optimised
	@$(CARGO) build $(SANDBOX) --release --bins

bench-quick: bench-build baileys ## the benches at small sizes, on both databases: a quarter of an hour
	@mkdir -p target/bench
	@for database in sqlite postgres; do \
	  $(BENCH) idle --database $$database --sizes 50,100,200 --settle 5 --json target/bench/quick-idle-$$database.json && \
	  $(BENCH) chats --database $$database --sizes 5,10,20 --rest 30 --json target/bench/quick-chats-$$database.json && \
	  $(BENCH) send --database $$database --seconds 5 --json target/bench/quick-send-$$database.json && \
	  $(BENCH) receive --database $$database --seconds 5 --json target/bench/quick-receive-$$database.json && \
	  $(BENCH) enqueue --database $$database --sizes 1000,20000 --seconds 5 --json target/bench/quick-enqueue-$$database.json && \
	  $(BENCH) read --database $$database --seconds 5 --json target/bench/quick-read-$$database.json \
	  || exit 1; done

bench: bench-build baileys ## all benches at their default sizes: an hour, and 16 GiB
	@mkdir -p target/bench
	@for database in sqlite postgres; do \
	  $(BENCH) idle --database $$database --json target/bench/idle-$$database.json && \
	  $(BENCH) chats --database $$database --json target/bench/chats-$$database.json && \
	  $(BENCH) send --database $$database --json target/bench/send-$$database.json && \
	  $(BENCH) receive --database $$database --json target/bench/receive-$$database.json && \
	  $(BENCH) enqueue --database $$database --json target/bench/enqueue-$$database.json && \
	  $(BENCH) read --database $$database --json target/bench/read-$$database.json \
	  || exit 1; done

lint: ## formatting, clippy, released features
	@$(CARGO) fmt --check
	@$(CARGO) clippy $(SANDBOX) --all-targets -- -D warnings
	@scripts/released-features

deny: ## licences, bans and sources of every dependency
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	@$(CARGO) deny check licenses bans sources

openapi: build-sandbox ## writes the generated documents again
	@$(BIN)/control-plane openapi > openapi/control-plane.json
	@$(BIN)/control-plane errors-doc > docs/errors.md
	@$(BIN)/control-plane roles-doc > docs/roles.md
	@$(BIN)/standalone configuration-doc > docs/configuration.md
	@$(BIN)/standalone env-example > .env.example

openapi-lint: ## Redocly and Spectral on the checked-in document
	@npm ci --silent --no-audit --no-fund --prefix openapi
	@npm --silent --prefix openapi run lint

hooks: ## the pre-commit hook, for this clone
	@git config core.hooksPath .githooks
