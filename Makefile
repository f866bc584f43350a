# Everything a developer does here is one of these targets; `make` alone lists them.
# PYTHON=python3.12 chooses another interpreter for the virtual environment.
# FLUXORA_PORT_BASE, FLUXORA_RUN_DIR and the rest of deploy/settings.py are read from the environment.

PYTHON ?= python3
ARGS ?=
SECONDS ?= 60

BIN := .venv/bin
STACK := $(BIN)/python -m deploy

.DEFAULT_GOAL := help
.PHONY: help prerequisites install jvm ready up down status clean distclean logs check test simulate torture demo bench \
	bench-peers lock

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

prerequisites: ## Say what this machine lacks (Python >= 3.11, Java >= 17, Maven), and how to get it
	@deploy/prerequisites.sh $(PYTHON)

install: prerequisites ## Make .venv from requirements.lock (hashes checked); nothing if it is current
	@deploy/install.sh $(PYTHON)

jvm: prerequisites ## Fetch Kafka, Debezium and Apicurio into .jvm from deploy/jvm/*/pom.xml; nothing if current
	@$(PYTHON) -I deploy/jars.py .jvm

# The two wait for the network in turn, so they go side by side.
ready: prerequisites
	@$(MAKE) --no-print-directory -j2 install jvm

up: ready ## Start the stack and our services, wait until they are ready (ARGS="--only stack", "--services FILE")
	@$(STACK) up $(ARGS)

down: ## Stop everything; data is kept
	@if [ -x $(BIN)/python ]; then $(STACK) down; fi

status: ## Show every part: state, pid, restarts
	@$(STACK) status $(ARGS)

logs: ## Print the ends of the logs (ARGS="kafka --follow")
	@$(STACK) logs $(ARGS)

clean: ## Stop everything and remove its data and logs
	@if [ -x $(BIN)/python ]; then $(STACK) clean; fi

distclean: clean ## As clean, and remove .venv and .jvm
	rm -rf .venv .jvm

check: install ## Lint, types, import rules, generated documents, schemas against the released ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m saga_processors.diagrams --check
	$(BIN)/python -m fluxora.asyncapi --check
	$(BIN)/python -m schemas.evolution
	$(BIN)/python -m pytest -q tests/architecture

test: ready ## All tests, on a stack of their own (ARGS="-k saga")
	$(BIN)/python -m pytest tests $(ARGS)

torture: ready ## Load a stack, kill everything in it by a seed, judge what is left (ARGS="--seconds 60 --seed 7")
	@$(BIN)/python -m tests.torture $(ARGS)

simulate: install ## The whole platform in virtual time, with fresh seeds (SECONDS=60); needs no stack
	FLUXORA_SIMULATION_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q -o timeout=0 -o log_cli=true \
		tests/simulation/test_simulation.py

demo: ready ## Run the example transactions through a stack of their own, show what happened, leave nothing running
	@$(BIN)/python -m examples.demo $(ARGS)

bench: ready ## Measure throughput, latency, relay and growth on a stack of their own (ARGS="--only latency", "--help")
	@$(BIN)/python -m bench $(ARGS)

bench-peers: ready ## Measure us and the peers' scripts in turn (ARGS="--peers-dir ../shared/peers")
	@$(BIN)/python -m bench.peers $(ARGS)

lock: install ## Pin the newest versions that pyproject.toml allows, with hashes (ARGS="--upgrade")
	$(BIN)/uv pip compile -q --generate-hashes --all-extras --python-version 3.11 --no-header --no-annotate \
		pyproject.toml -o requirements.lock $(ARGS)
