# make run    train the nano model on two CPU cores (minutes), sample from it, then serve it; repeat to continue
# make test   every test, and every Python block of README.md and docs/
# make check  style, types, import layers, dead code, generated pages, the documentation site
# make bench  the comparisons in benchmarks/, side by side with their peers
# make docs   the documentation site, into site/
# make setup  the virtual environment with all development packages
# make coding-agents  Claude Code, Kimi Code and kimi-cli into .tools/, for their tests: a minute and 800 MB, once
#
# Without a terminal `make run` makes one request of the server and ends.
# Another Python than python3: make PYTHON=python3.12 run
# Another run folder, other fields, another port: make run RUN=runs/mine ARGS="--data.paths DIR" PORT=8080

PYTHON ?= python3
RUN ?= runs/nano
ARGS ?=
PORT ?= 8000
BIN := .venv/bin
# Two workers on two cores; more cores, more workers, up to what the tests can feed.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 8 ] && n=8; echo $$n)

.DEFAULT_GOAL := help
.PHONY: help run test check bench docs setup generate coding-agents

help:
	@sed -n '/^$$/q; s/^# \?//p' Makefile

run: .venv/.installed
	$(BIN)/chogori train nano --out $(RUN) $(ARGS)
	$(BIN)/chogori sample $(RUN) < /dev/null
	$(BIN)/chogori serve --model $(RUN) --port $(PORT) $$([ -t 0 ] || echo --once)

# The blocks of a page build on each other, so each page stays with one worker.
test: .venv/.installed-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -q tests
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -q README.md README.ja.md docs

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --warnings
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/zensical build --clean --strict

bench: .venv/.installed-dev
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done
	$(BIN)/python scripts/generate_docs.py

docs: .venv/.installed-dev generate
	$(BIN)/zensical build --clean --strict

# docs/cli.md from the command line's own help, the tables of docs/benchmarks.md from benchmarks/results/.
generate: .venv/.installed-dev
	$(BIN)/python scripts/generate_docs.py

setup: .venv/.installed-dev

# What cannot be had on this machine is named; the tests of what is not there are skipped.
coding-agents:
	scripts/install-coding-agents

# A stamp is written last, so an interrupted installation is repeated.
.venv/.installed: pyproject.toml constraints.txt
	scripts/prepare-machine $(PYTHON)
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

.venv/.installed-dev: .venv/.installed
	scripts/prepare-machine $(PYTHON) tests
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
