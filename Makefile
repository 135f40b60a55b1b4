# Everything that needs RabbitMQ, Redis or a browser gets them from scripts/, which install what is
# missing. ARGS is handed on: make test ARGS='retry -- --nocapture'

# Where cargo builds; CARGO_TARGET_DIR and cargo's own settings may put it anywhere.
TARGET = "$$(cargo metadata --locked --no-deps --format-version 1 \
	| sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
HANDOFF = $(TARGET)/debug/handoff
RELEASE = $(TARGET)/release

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: demo
demo: build ## Show it at work: a sandbox platform, a worker and a few requests
	@scripts/with-services $(HANDOFF) demo $(ARGS)

.PHONY: run
run: build ## Run the worker beside private services, with the settings in HANDOFF_…
	@scripts/with-services $(HANDOFF) run $(ARGS)

.PHONY: build
build: tools ## Build the program
	cargo build --locked

# Tests wait more than they work, so more of them run at once than there are cores.
export RUST_TEST_THREADS ?= 6

# Built first, so that the services run no longer than the tests.
.PHONY: test
test: tools ## Run the tests, with a real RabbitMQ, Redis and browser
	cargo test --locked --no-run $(ARGS)
	scripts/with-browser scripts/with-services cargo test --locked $(ARGS)

.PHONY: test-rabbitmq4
test-rabbitmq4: ## Run the tests with RabbitMQ 4, from a folder that is made for it (as root)
	root=$$(scripts/rabbitmq4-root) && HANDOFF_RABBITMQ_ROOT=$$root $(MAKE) test

.PHONY: chaos
chaos: tools ## Break everything at random for minutes; ARGS='--seed 7 --minutes 5'
	cargo test --locked --test chaos --no-run
	scripts/with-services cargo test --quiet --locked --test chaos -- $(ARGS)

# BENCH is handed on: make bench BENCH='--rounds 5 --only 1,024'
.PHONY: bench
bench: tools ## Measure it beside a bare loop; PEERS=1 adds Python and Node, SCALE=1 measures scale
	cargo build --locked --release -p handoff -p handoff-benches --bins
	$(if $(PEERS),benches/peers/setup $(RELEASE)/peers)
	scripts/with-services $(RELEASE)/end-to-end \
		$(if $(PEERS),--peers $(RELEASE)/peers) $(if $(SCALE),--scale) $(BENCH)

.PHONY: bench-micro
bench-micro: tools ## Measure the steps that only compute
	cargo bench --locked -p handoff-benches --bench micro -- $(ARGS)

.PHONY: bench-instructions
bench-instructions: tools ## Count the instructions of a request, and compare with what is on record
	cargo build --locked --release -p handoff -p handoff-benches --bins
	scripts/with-services benches/instructions/count $(RELEASE) $(ARGS)

.PHONY: test-image
test-image: ## Build the image, and try it out with docker-compose.yml
	scripts/test-image

.PHONY: check-snippets
check-snippets: build ## Run the programs of docs/integrating.md against the demo
	@scripts/with-services scripts/check-snippets $(HANDOFF)

.PHONY: check-deploy
check-deploy: build ## Check what deploy/ holds: Kubernetes, alerts, dashboard, compose, systemd
	scripts/check-deploy $(HANDOFF)

.PHONY: lint
lint: tools ## Check the format, and run clippy and, where it is installed, shellcheck
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	! command -v shellcheck >/dev/null || shellcheck -x scripts/* benches/peers/setup benches/instructions/count deploy/healthcheck .ci/run

.PHONY: check-schema
check-schema: ## Check docs/asyncapi.yaml by AsyncAPI's own parser (needs Node.js and npm)
	scripts/check-schema docs/asyncapi.yaml

.PHONY: doc
doc: tools ## Build the documentation, private items included
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

.PHONY: ci
ci: ## Run what CI runs
	.ci/run

.PHONY: tools
tools:
	@scripts/ensure-tools
