# One virtual environment (.venv) for everything; scripts/setup.sh brings what a target
# needs and does nothing the second time.
.PHONY: setup demo test unit lint bench campaign clean

PY = .venv/bin/python
ARGS =
SEED = 1
COUNT = 200

setup:
	@scripts/setup.sh test

demo:
	@scripts/setup.sh demo
	@$(PY) demo/run.py $(ARGS)

# ARGS goes to pytest: make test ARGS="-k vhdx -x".
test: setup lint
	@scripts/run_tests.sh $(ARGS)

# The quick ones only: no mounts, servers, guests, processes, oracles or fault sweeps.
unit: setup
	$(PY) -m pytest -m "not (mount or azurite or boot or program or oracle or fault)" $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	@scripts/lint_native.sh

bench:
	@scripts/setup.sh bench
	$(PY) benchmarks/backup.py $(ARGS)
	$(PY) benchmarks/hydrate.py $(ARGS)
	$(PY) benchmarks/boot.py $(ARGS)
	$(PY) benchmarks/replay.py
	$(PY) benchmarks/files.py
	$(PY) benchmarks/mount.py $(ARGS)

# The long fault campaigns; the same SEED and COUNT give the same campaign.
campaign: setup
	$(PY) -m tests.campaign --seed $(SEED) --count $(COUNT) $(ARGS)

clean:
	rm -rf .venv tests/azurite/node_modules native/target build *.egg-info \
	    .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cloudmount tests benchmarks demo -name __pycache__ -prune -exec rm -rf {} +
