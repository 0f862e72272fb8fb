# Everything installs into .venv by itself; remove that folder to start afresh.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= data/flickr8k-cn
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo space test lint bench matrix clean

help:            ## this list
	@grep -hE '^[a-z_]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: .venv/demo ## caption six sample photos with the bundled checkpoint, write demo.png
	$(BIN)/mengzi-oscar caption --samples --picture demo.png

space: .venv/space ## the demo in a browser, offline, on http://127.0.0.1:7860
	$(BIN)/python space/app.py

test: .venv/test ## install what tests need and run the whole test suite
	$(BIN)/python -m pytest -q

lint: .venv/dev  ## ruff: mistakes and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/test .venv/demo ## the benchmarks that run on a CPU
	$(BIN)/python benchmarks/caption.py --runs 2
	$(BIN)/python benchmarks/caption.py --runs 2 --model checkpoints/mengzi-oscar-mini --naive-images 6
	$(BIN)/python benchmarks/train_step.py --runs 2
	$(BIN)/python benchmarks/train_step.py --runs 2 --job pretrain
	$(BIN)/python benchmarks/match.py --runs 1
	$(BIN)/python benchmarks/match.py --runs 2 --model checkpoints/mengzi-oscar-mini/match
	$(BIN)/python benchmarks/detector.py --runs 1
	$(BIN)/python benchmarks/space_load.py --requests 100
	rm -rf .venv/bench
	$(BIN)/python benchmarks/features.py --folder .venv/bench --rows 500 --images 100000

# RELEASES="5.5.4 newest" runs some of them.
matrix: .venv/demo ## the bundled checkpoint under every release of transformers, a table
	$(BIN)/python tests/releases/matrix.py $(RELEASES)

clean:           ## remove .venv and what the demo wrote
	rm -rf .venv demo.png

.venv/pip: setup.cfg
	$(PYTHON) -m venv .venv
	@touch $@

# One extra, one stamp: what is installed already costs nothing the second time.
.venv/demo .venv/space .venv/test .venv/dev: .venv/pip
	@echo "installing into .venv: about 6 GB the first time, most of it torch"
	$(PIP) --editable ".[$(@F)]"
	@touch $@
