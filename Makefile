# `make` lists the targets. Everything runs in a virtual environment of the checkout, .venv, which is
# built from the lock file. Root is needed only where the target says it.

PYTHON ?= python3
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo docs test vm-test adversary soak check lint types bench study forms man signatures layers lock release clean

help: ## list the targets
	@awk -F '## ' '/^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## poison a small real XFS image, look up the owner of every failed block, and recover
	@$(BIN)/python -m demo.demo

test: $(READY) ## run all tests that can run here; the others are skipped with the reason
	@$(BIN)/python -m tools.run_tests $(WORKERS) $(ARGS)

vm-test: $(READY) ## test with real kernels and persistent memory, in virtual machines; takes minutes
	@-tools/vm/kernel && tools/xfsprogs # else the tests are skipped with the reason
	$(BIN)/python -m pytest tests/vm $(ARGS)

adversary: $(READY) ## run lookups on damaged images, or ARGS=healthy or special; an hour, as root
	$(BIN)/python -m tools.adversary $(or $(ARGS),damaged)

check: lint types test ## run lint, types and test, which every change must pass

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.prose

types: $(READY)
	$(BIN)/mypy

soak: $(READY) ## run the daemon for two hours on failing disks, in a virtual machine; ARGS="--minutes 5"
	@tools/vm/kernel >/dev/null && tools/xfsprogs >/dev/null
	@mkdir -p build/soak
	@VM_TIMEOUT=14400 tools/vm/run --share build/soak env PYTHONPATH=$(CURDIR)/src:$(CURDIR) \
		PYTHONDONTWRITEBYTECODE=1 sh -c 'modprobe -a loop fuse xfs && exec "$$@"' sh \
		$(CURDIR)/$(BIN)/python -m bench.soak --patience 300 $(ARGS)

bench: $(READY) ## measure lookups against xfs_db and debugfs, and the daemon; half an hour
	$(BIN)/python -m bench $(ARGS)

study: $(READY) ## measure the three designs against each other, and update docs/study.md
	$(BIN)/python -m bench.study

forms: $(READY) ## write the tables of forms and messages, docs/internals/forms.md
	$(BIN)/python -m whoseblock.sources.forms > docs/internals/forms.md

man: $(READY) ## write the man pages in docs/man, which the wheel installs
	$(BIN)/python -m whoseblock.cli.man docs/man

signatures: $(READY) ## write the tables of docs/internals/signatures.md
	$(BIN)/python -m tools.signature_table

docs: build/docs/.ready ## build the site into build/site, without a warning
	@PYTHONPATH=src build/docs/bin/python -m sphinx --quiet --fail-on-warning --keep-going --jobs auto \
		--conf-dir docs/site . build/site
	@build/docs/bin/python -m tools.check_links build/site
	@echo 'open build/site/docs/index.html'

build/docs/.ready: requirements/docs.lock
	@rm -rf build/docs
	@$(PYTHON) -m venv build/docs
	@build/docs/bin/pip --disable-pip-version-check install -qq --require-hashes -r $<
	@touch $@

layers: $(READY) ## write the table of docs/internals/layers.md
	$(BIN)/python -m tools.layer_table

# uv only writes the lock files, and is not in them. The index configured on this machine is ignored,
# so that the files and hashes are those of the public one. No URL is written.
LOCK := env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
	build/uv/bin/uv pip compile pyproject.toml --no-config --quiet --upgrade \
	--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

lock: | build/uv ## update the lock files in requirements/
	$(LOCK) --output-file requirements/core.lock
	$(LOCK) --group dev --constraint requirements/core.lock --output-file requirements/dev.lock
	$(LOCK) --group docs --constraint requirements/core.lock --output-file requirements/docs.lock

build/uv:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet uv

release: $(READY) ## build wheel and sdist into dist/ reproducibly, check and try both
	@$(BIN)/python -m tools.release

clean: ## remove everything that make created
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Created again, never updated, when a prerequisite changes. The checkout itself is installed editable
# and without build isolation: even the build backend is the locked one.
$(READY): requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'whoseblock needs Python 3.11 or newer: install the package python3.11 (or newer)' \
			'and its -venv, then run: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot create virtual environments: install the package python3-venv' >&2; \
		exit 1; }
	@echo 'creating $(VENV) from requirements/dev.lock' >&2
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip --disable-pip-version-check install -qq --require-hashes -r requirements/dev.lock
	@$(BIN)/pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@
