# make demo: the main job on the embedded tiny model. make test: linting, types and tests.
# make bench: speed against goals (REFERENCE_DIR names a checkout of the reference). make profile: time by operation.
# make rehearse: the budget of a chunk by card, without a GPU.
# make serve: the worker behind a local endpoint. make page: a browser page for it.
# Each target installs its requirements into .venv (the page into .venv-page), once.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PAGE_VENV := .venv-page

.PHONY: demo serve page voices bench rehearse profile test test-long fuzz kills soak quality lint types format schemas lock pins clean

demo: $(VENV)/.requirements
	$(BIN)/python handler.py --test_input "$$(cat examples/single_image.json)"
	@echo "The video, 128x128 pixels: outputs/infinitetalk/jobs/demo.mp4"

serve: $(VENV)/.requirements
	$(BIN)/python -m tools.local_endpoint

page: $(PAGE_VENV)/.requirements
	$(PAGE_VENV)/bin/python examples/app.py

# Samples of the voices, for the page; with words where Kokoro's weights are.
voices: $(VENV)/.requirements
	$(BIN)/python -m tools.voice_samples

test: lint types
	@echo "The tests take about half an hour on two cores; make demo takes half a minute."
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m "not long"

# Minutes: long tests; short forms of them are part of `make test`.
test-long: $(VENV)/.requirements-dev
	$(BIN)/python -m pytest -m long

# Tens of minutes: random and hostile jobs must end within their limits, with a result or a coded error. A short form is
# part of `make test`.
fuzz: $(VENV)/.requirements-dev
	$(BIN)/python -m tests.fuzz_jobs

# Minutes: the workers of one job are killed five times. A short form is part of `make test`.
kills: $(VENV)/.requirements-dev
	$(BIN)/python -m tests.kills

# Minutes: 200 jobs of all kinds through one worker. A short form is part of `make test`.
soak: $(VENV)/.requirements-dev
	$(BIN)/python -m tests.soak

bench: $(VENV)/.requirements-bench
	$(BIN)/python -m benchmarks

rehearse: $(VENV)/.requirements
	$(BIN)/python -m benchmarks.rehearsal

profile: $(VENV)/.requirements-bench
	$(BIN)/python -m benchmarks.profiling

# Minutes: the quality of the embedded model's videos, against goals. A short form is part of `make test`.
quality: $(VENV)/.requirements
	$(BIN)/python -m tools.talker.quality

lint: $(VENV)/.requirements-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/actionlint

types: $(VENV)/.requirements-dev
	$(BIN)/mypy

format: $(VENV)/.requirements-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(VENV)/.requirements-dev
	$(BIN)/python -m tools.generated

# The image's packages with their hashes: for its Python and its system, with torch's build for CUDA. Locked versions
# that requirements.txt does not name stay unchanged; without a lock, the newest are taken.
lock: $(VENV)/.requirements-dev
	$(BIN)/uv pip compile requirements.txt --quiet --no-config --generate-hashes --no-build --python-version 3.12 \
		--python-platform x86_64-manylinux_2_39 --output-file requirements.lock

# Pins what the image and the workflows fetch by name besides packages; looks up missing pins at Docker Hub and GitHub.
pins:
	$(PYTHON) -m tools.pins

clean:
	rm -rf $(VENV) $(PAGE_VENV) outputs checkpoints

# The packages need one of these versions. An environment that venv could only half make would break later runs.
define new_environment
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))" || { \
		echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; \
		exit 1; }
	$(PYTHON) -m venv $(1) || { rm -rf $(1); exit 1; }
endef

$(BIN)/python:
	$(call new_environment,$(VENV))

# Each requirements file has a stamp: pip runs again only if the file has changed. pip compiles no bytecode; Python
# compiles modules on first import and must be allowed to keep the result.
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/.requirements: requirements.txt requirements-faces.txt | $(BIN)/python
	@echo "Installing the pinned requirements into $(VENV): some GB, a few minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
		-r requirements-faces.txt
	@touch $@

$(VENV)/.requirements-dev: requirements-dev.txt $(VENV)/.requirements
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@

$(VENV)/.requirements-bench: requirements-bench.txt $(VENV)/.requirements-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-bench.txt
	@touch $@

# The page's library needs older versions of the worker's packages, so it has its own environment.
$(PAGE_VENV)/.requirements: examples/requirements.txt
	$(call new_environment,$(PAGE_VENV))
	$(PAGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r examples/requirements.txt
	@touch $@
