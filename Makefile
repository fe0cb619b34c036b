# make demo: the main job on the embedded tiny model. make test: linting, types and tests.
# make bench: how fast it is, against goals (REFERENCE_DIR names a checkout of the reference). make profile: where time goes.
# make rehearse: the budget of a chunk by card, without a GPU.
# make serve: the worker behind a local endpoint. make page: a page in the browser for it.
# Each sets up what it needs in .venv (the page in .venv-page), once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PAGE_VENV := .venv-page

.PHONY: demo serve page bench rehearse profile test test-long fuzz kills soak quality lint types format schemas lock pins clean

demo: $(VENV)/.requirements
	$(BIN)/python handler.py --test_input "$$(cat examples/single_image.json)"
	@echo "The video, 64x64 pixels: outputs/infinitetalk/jobs/demo.mp4"

serve: $(VENV)/.requirements
	$(BIN)/python -m tools.local_endpoint

page: $(PAGE_VENV)/.requirements
	$(PAGE_VENV)/bin/python examples/app.py

test: lint types
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m "not long"

# Minutes: the tests whose short forms are among the others.
test-long: $(VENV)/.requirements-dev
	$(BIN)/python -m pytest -m long

# Tens of minutes: random and hostile jobs, always a result or a coded error, within their limits. A short form is among
# the tests.
fuzz: $(VENV)/.requirements-dev
	$(BIN)/python -m tests.fuzz_jobs

# Minutes: a job whose workers are killed, five times. A short form is among the tests.
kills: $(VENV)/.requirements-dev
	$(BIN)/python -m tests.kills

# Minutes: 200 jobs of all kinds through one worker. A short form is among the tests.
soak: $(VENV)/.requirements-dev
	$(BIN)/python -m tests.soak

bench: $(VENV)/.requirements-bench
	$(BIN)/python -m benchmarks

rehearse: $(VENV)/.requirements
	$(BIN)/python -m benchmarks.rehearsal

profile: $(VENV)/.requirements-bench
	$(BIN)/python -m benchmarks.profiling

# Minutes: what the embedded model's videos show, against the goals. A short form is among the tests.
quality: $(VENV)/.requirements
	$(BIN)/python -m tools.talker.quality

lint: $(VENV)/.requirements-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(VENV)/.requirements-dev
	$(BIN)/mypy

format: $(VENV)/.requirements-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(VENV)/.requirements-dev
	$(BIN)/python -m tools.generated

# The image's packages, each with its hashes: for its Python and its system, with torch's build for CUDA. Versions that
# the lock has and requirements.txt does not name stay as they are; where there is no lock, the newest are taken.
lock: $(VENV)/.requirements-dev
	$(BIN)/uv pip compile requirements.txt --quiet --no-config --generate-hashes --no-build --python-version 3.12 \
		--python-platform x86_64-manylinux_2_39 --output-file requirements.lock

# What the image and the workflows fetch by name beside packages: looks up, at Docker Hub and GitHub, what has no pin yet.
pins:
	$(PYTHON) -m tools.pins

clean:
	rm -rf $(VENV) $(PAGE_VENV) outputs checkpoints

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each requirements file: pip runs again only when the file has changed. It compiles nothing: Python does, what it
# imports, when it first does, and must be let keep it.
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/.requirements: requirements.txt | $(BIN)/python
	@echo "Installing the pinned requirements into $(VENV): some GB, a few minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@touch $@

$(VENV)/.requirements-dev: requirements-dev.txt $(VENV)/.requirements
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@

$(VENV)/.requirements-bench: requirements-bench.txt $(VENV)/.requirements-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-bench.txt
	@touch $@

# The page's library wants older versions of packages that the worker has: it gets an environment of its own.
$(PAGE_VENV)/.requirements: examples/requirements.txt
	$(PYTHON) -m venv $(PAGE_VENV)
	$(PAGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r examples/requirements.txt
	@touch $@
