# make results [SUITE=smoke]   set up .venv and run a suite: tables and figures appear in results/<suite>/
# make test                    the tests, without those that are marked as slow
# make test-all                all tests, with more random inputs
# make slurm                   the workflow on a real Slurm of one node; as root on Debian, else skipped with the reason
# make conda                   a tiny suite under --use-conda, with a stand-in for conda (tests/conda/conda)
# make pretrained              train the networks that ship anew (benchmarks/metatraining.yaml); needs KNOW_DATA
# make lint                    what continuous integration checks besides
SUITE ?= smoke
PYTHON ?= python3
CORES ?= all

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONNOUSERSITE := 1
INSTALLED := .venv/.installed

.PHONY: results test test-all slurm conda lint pretrained lock clean

results: $(INSTALLED)
	snakemake --cores $(CORES) --config suite=$(SUITE)
	@echo "Tables and figures: results/$(SUITE)/README.md"

test: $(INSTALLED)
	pytest -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)
	pytest -n 2 --dist loadfile --hypothesis-profile wide

slurm: $(INSTALLED)
	pytest -rs tests/slurm/check_slurm.py

conda: $(INSTALLED)
	pytest -rs tests/conda/check_conda.py

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	snakemake --lint
	snakemake --lint --snakefile workflow/metatraining.smk

# uv first, by its own hashes from the lock file; it installs the rest in seconds and shares files between clones.
$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.txt
	python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	uv pip install --python .venv/bin/python --require-hashes --compile-bytecode -r requirements.lock
	uv pip install --python .venv/bin/python --no-deps --no-build-isolation --editable .
	touch $@

pretrained: $(INSTALLED)
	snakemake --snakefile workflow/metatraining.smk --cores $(CORES)

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --all-extras --no-emit-index-url --no-header \
		pyproject.toml -o requirements.lock

clean:
	rm -rf .venv work .snakemake
