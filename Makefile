# make bench   this driver beside what stock ssh runs, in a lab (root, Debian 12; under 15 minutes); build/prolog.html
# make demo    the main job on a real Debian image, in a lab on this machine (root, Debian 12; about five minutes)
# make test    all tests; without root, those that need none
# make check   ruff, mypy --strict, shellcheck
# make reference  writes docs/CONFIGURATION.md and install/fastcopy.yaml from the table of settings
# make clean   removes what the others made in this directory

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
SHELL_FILES := install/debian-packages.sh install/command install/fastcopyd install/fastcopy-action .ci/run bench/command \
    tm_fastcopy/remotes/fastcopy tm_fastcopy/remotes/backup tm_fastcopy/remotes/monitor tests/python39.sh
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: bench demo test e2e walk others python39 check reference clean packages

demo: $(VENV)/ready
	bench/demo

# Without OpenNebula; with it, see docs/BENCHMARKING.md.
bench: $(VENV)/ready
	mkdir -p build
	bench/prolog --quick --json build/prolog.json --html build/prolog.html

# Side by side: each waits most of its time, for links, time limits and disks.
test: $(VENV)/ready
	$(MAKE) --no-print-directory --keep-going --jobs=3 --output-sync=target e2e walk others

e2e: $(VENV)/ready
	$(BIN)/python -m pytest tests/e2e

walk: $(VENV)/ready
	$(BIN)/python -m pytest tests/faults/test_crash_walk.py

others: $(VENV)/ready
	$(BIN)/python -m pytest --ignore=tests/e2e --ignore=tests/faults/test_crash_walk.py
	tests/python39.sh

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	shellcheck $(SHELL_FILES)

reference: $(VENV)/ready
	$(BIN)/python -m tm_fastcopy.frontend.reference

packages:
	install/debian-packages.sh

# Tools of the system first: without venv there is no environment to make.
$(VENV)/ready: setup.cfg | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,bench,check]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
