# make train    set up, then fine-tune the shapes model on this machine
# make test     set up, then run the tests, on two cores (JOBS=2)
# make faults   kill processes of a run and see that nothing is lost (KILLS=50 SEED=0 SHARDS=1 RANKS=1)
# make fuzz     decode damaged frames and work with damaged keys (N=1000000 STATES=10000)
# make scale    how rate and cost per sample go with the size of a fleet (RECORDS=1000000)
# make check    ruff, its formatter, pyright
# make bench    rates of the parts, beside plain ways of doing the same
# make test-slow   the tests that take from ten seconds to some minutes each
# See deploy/cluster.md for a cluster.

VENV   ?= .venv
PYTHON ?= python3
SEED   ?= 0
METHOD ?= lasro
RUN    ?= shapes-$(METHOD)-seed$(SEED)
ARGS   ?=
KILLS  ?= 50
SHARDS ?= 1
RANKS  ?= 1
N      ?= 1000000
STATES ?= 10000
RECORDS ?= 1000000
# Tests start many processes on few cores: threads that wait should not spin.
export OMP_WAIT_POLICY ?= PASSIVE
# Processes that share the tests without Ray; those with it run one by one.
JOBS   ?= 2
# For the runner itself, such as --resume or --check.
FLAGS  ?=
# What chooses torch's build, such as --index-url <PyTorch's index for your CUDA>.
TORCH_ARGS ?=

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow check bench scale faults fuzz clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

setup: $(VENV)/.stamp

# torch first and by itself: DeepSpeed's build reads the torch that is there.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fleetune needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0])'
	@echo "Setting up $(VENV) (once, some minutes)"
	@start=$$(date +%s) && \
	  { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	  $(BIN)/python -m pip install -q -c constraints.txt $(TORCH_ARGS) torch && \
	  $(BIN)/python -m pip install -q -c constraints.txt -e '.[test]' && \
	  echo $$(( $$(date +%s) - start )) > $(VENV)/.setup_s
	@touch $@

train: setup
	@$(BIN)/python -m deploy.local --run '$(RUN)' $(FLAGS) -- deploy/configs/shapes-$(METHOD).yaml seed=$(SEED) $(ARGS)

test: setup
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not slow' tests/unit $(ARGS)
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not slow and not ray' tests/services tests/e2e $(ARGS)
	@$(BIN)/python -m pytest -q -m 'not slow and ray' tests/services tests/e2e $(ARGS)

test-slow: setup
	@for part in unit services e2e; do \
	  $(BIN)/python -m pytest -q -m slow tests/$$part $(ARGS) || failed=1; \
	done; test -z "$$failed"

check: setup
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/pyright

faults: setup
	@$(BIN)/python -W ignore -m deploy.drills.faults --kills $(KILLS) --seed $(SEED) --shards $(SHARDS) --ranks $(RANKS) $(ARGS)

fuzz: setup
	@$(BIN)/python -W ignore -m deploy.drills.fuzz --frames $(N) --states $(STATES) --seed $(SEED)

bench: setup
	@$(BIN)/python -m deploy.bench $(ARGS)

scale: setup
	@$(BIN)/python -W ignore -m deploy.bench.scale --records $(RECORDS) $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
