# Everything installs into .venv by itself, in the versions of constraints.txt; remove that folder to start afresh.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --disable-pip-version-check
# The second file is for what pip builds (jieba has no wheel): setuptools in the locked version too.
LOCKED := --constraint constraints.txt --build-constraint constraints.txt
# Two processes with a thread each: most of a test is Python's own work. A file's tests stay together, with what they share.
TESTS := -m pytest -q --numprocesses 2 --dist loadfile
test test-newest: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo space test lint bench matrix test-newest lock clean

help:            ## this list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: .venv/demo ## caption six sample photos with the bundled checkpoint, write demo.png
	$(BIN)/mengzi-oscar caption --samples --picture demo.png

space: .venv/space ## the demo in a browser, offline, on http://127.0.0.1:7860
	$(BIN)/python space/app.py

test: .venv/test .venv/lmms-eval ## install what tests need and run the whole test suite
	$(BIN)/python $(TESTS)

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
	$(BIN)/python benchmarks/nms.py
	$(BIN)/python benchmarks/space_load.py --requests 100
	rm -rf .venv/bench
	$(BIN)/python benchmarks/features.py --folder .venv/bench --rows 500 --images 100000

# RELEASES="oldest 5.5.4 latest" runs some of them.
matrix: .venv/test ## the bundled checkpoint under every release of transformers, a table
	$(BIN)/python tests/releases/matrix.py $(RELEASES)

# Without the lock, in a folder of its own.
test-newest:     ## the suite with today's newest releases: which of them broke what
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) --upgrade pip setuptools
	.venv-newest/bin/python $(PIP) --editable ".[dev]"
	.venv-newest/bin/python .ci/lock.py compare
	.venv-newest/bin/python $(TESTS) || { .venv-newest/bin/python .ci/lock.py compare; exit 1; }
	@touch .venv-newest/passed

lock:            ## constraints.txt from the environment of test-newest, once the suite passed there
	@test -e .venv-newest/passed || $(MAKE) test-newest
	.venv-newest/bin/python .ci/lock.py write

clean:           ## remove what was installed and what the demo wrote
	rm -rf .venv .venv-newest demo.png

# pip first, since it installs the others: older ones do not know --build-constraint.
.venv/pip: constraints.txt setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --constraint constraints.txt pip setuptools
	@touch $@

# lmms-eval and what our tasks make it import, beside the environment: it wants older protobuf and filelock than the lock.
.venv/lmms-eval: tests/evaluation/requirements.txt .venv/test
	rm -rf $@ $@.tmp
	$(BIN)/python $(PIP) --build-constraint constraints.txt --quiet --no-deps --no-compile --target $@.tmp --requirement $<
	mv $@.tmp $@

# One extra, one stamp: what is installed already costs nothing the second time.
.venv/demo .venv/space .venv/test .venv/dev: .venv/pip
	@echo "installing into .venv: about 6 GB the first time, most of it torch"
	$(BIN)/python $(PIP) $(LOCKED) --editable ".[$(@F)]"
	@touch $@
