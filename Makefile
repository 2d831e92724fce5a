PYTHON ?= python3
BIN := .venv/bin
LONGEST := tests/e2e/ tests/execution/
OTHERS := $(filter-out $(LONGEST) tests/__pycache__/,$(wildcard tests/*/) $(wildcard tests/test_*.py))

.PHONY: setup demo test test-long lint clean

setup: .venv/made  ## the environment, pinned, and nothing else

.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## the main job: sweep, leaderboard, promote, predict
	$(BIN)/orchestrator sweep configs/digits-cnn.yaml
	$(BIN)/orchestrator runs digits-cnn --top 5
	$(BIN)/orchestrator promote digits-cnn || test $$? -eq 1  # a second demo finds a champion that is as good
	$(BIN)/orchestrator predict models:/digits-cnn@champion "$$($(BIN)/orchestrator data prepare configs/digits-cnn.yaml --json \
	  | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["splits"]["test"]["files"][0])')" predictions.parquet
	@echo
	@echo "Done. Next, with '$(BIN)' on your PATH:"
	@echo "  orchestrator ui                                   every run in the MLflow UI"
	@echo "  orchestrator history digits-cnn                   who promoted what, when, why"
	@echo "  orchestrator train configs/digits-cnn.yaml training.epochs=20"
	@echo "  orchestrator train configs/digits-cnn.yaml scaling.workers=2      two processes, DDP"
	@echo "  orchestrator plan configs/mnist-cnn.yaml data.path=FOLDER        your own data: see README.md"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup lint  ## everything that CI checks; two files at a time, since each starts processes of its own, the longest first
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30 $(LONGEST) $(OTHERS)

test-long: setup  ## more of the same: other seeds of what is random, other families with two workers
	$(BIN)/python -m pytest -m long

clean:  ## the environment and what the demo made
	rm -rf .venv .orchestrator mlruns mlflow.db predictions.parquet
