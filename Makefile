# make repro   the whole pipeline on the embedded default     make test   all tests
# make ui      the runs in MLflow                             make tune   a small Optuna study
# make serve   the promoted model over HTTP, on loopback      make app   a page to decompose and edit images, on loopback
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: repro test lint ui serve app tune setup requirements clean

repro: $(READY)
	dvc repro
	@echo "Numbers: metrics/reports/*.json, images: metrics/reports/panels; runs and curves: make ui"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	git ls-files -z | xargs -0 $(BIN)/codespell

ui: $(READY)
	@MLFLOW_TRACKING_URI= $(BIN)/python -m tracking.spool
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --port 5000

serve: $(READY)
	$(BIN)/python -m stages.serve

app: $(READY)
	$(BIN)/python -m stages.app

tune: $(READY)
	dvc repro prepare_buckets
	$(BIN)/python -m stages.tune

setup: $(READY)

$(READY): requirements.txt
	@$(PYTHON) -c 'import re, sys; \
		text = open("pyproject.toml").read(); \
		bounds = re.search(r"requires-python = .>=3\.(\d+),<3\.(\d+)", text).groups(); \
		low, high = map(int, bounds); \
		fits = (3, low) <= sys.version_info < (3, high); \
		sys.exit(not fits and f"error: Python 3.{low} to 3.{high - 1} is needed, {sys.executable} is {sys.version.split()[0]}; try make PYTHON=python3.{low}")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	touch $@

requirements:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url requirements.in -o requirements.txt

clean:
	rm -rf .venv .checkpoints .tune data/cache data/composed
