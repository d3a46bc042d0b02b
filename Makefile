# make demo: train a recipe on this machine from nothing.   make unit: an answer in a minute, with torch alone.
# make check: style and types.                              make test: everything the project promises.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt
UNIT = not live and not extras and not tensorflow and not horovod and not ray and not slurm and not gpu
NEEDS = pyproject.toml constraints.txt
SOURCES = $(NEEDS) $(shell find dtrain strategies clusters trackers exporters recipes -type f -not -name "*.pyc")

.PHONY: demo unit test test-gpu check lint types campaign bench docs clean

demo: $(VENV)/.demo
	$(VENV)/bin/dtrain run recipes/digits_ddp.yaml

# Needs torch and no other framework, no cluster and no Horovod; starts no whole run.
unit: $(VENV)/.unit $(VENV)/.installed
	$(VENV)/bin/python -P -m pytest -m "$(UNIT)" -n 2

# Real processes, real SLURM, real Ray, real Horovod; the tests that needed another try are listed at the end.
test: $(VENV)/.test $(VENV)/.installed check
	$(VENV)/bin/python -P tests/run.py

# The documents as a site for reading without a network: site/index.html.
docs: $(VENV)/.docs $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -P -m mkdocs build --quiet

# On a machine with GPUs, where what is installed is enough: `python -m pytest tests -m gpu`.
test-gpu: $(VENV)/.test $(VENV)/.installed
	$(VENV)/bin/python -P -m pytest tests -m gpu

# Random kills against real runs, compared with undisturbed ones, ROUNDS for each strategy; then every fault of `dtrain drill` under
# every strategy, and the main ones on real SLURM and Ray (about an hour on two CPUs); training programs drawn at random (PROGRAMS),
# compared by hand and with themselves; then two supervisors of one run, held up anywhere, in a model, in simulated time (SEEDS) and for
# real, system calls that fail under whole commands, and the small form of the soak.
ROUNDS ?= 20
PROGRAMS ?= 400
SEEDS ?= 10000
campaign: $(VENV)/.test $(VENV)/.installed
	$(VENV)/bin/python tests/campaign/drills.py
	$(VENV)/bin/python tests/campaign/kills.py --rounds $(ROUNDS)
	$(VENV)/bin/python tests/campaign/exact_matrix.py
	$(VENV)/bin/python tests/campaign/fencing.py --rounds $(ROUNDS)
	$(VENV)/bin/python -P tests/campaign/programs.py --programs $(PROGRAMS)
	$(VENV)/bin/python tests/campaign/simulation.py --seeds $(SEEDS)
	DTRAIN_FAILING_CALLS=1000 $(VENV)/bin/python -P -m pytest --timeout 0 tests/live/storage/test_failing_calls.py
	$(VENV)/bin/python tests/campaign/soak.py

check: lint types

lint: $(VENV)/.check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.check
	$(VENV)/bin/mypy dtrain
	$(VENV)/bin/mypy strategies clusters trackers exporters
	$(VENV)/bin/mypy tests benchmarks --exclude '(programs|runs_[0-9a-f]+)/'

bench: $(VENV)/.test $(VENV)/.installed
	$(PIP) '.[bench]'
	$(VENV)/bin/python benchmarks/launch.py
	$(VENV)/bin/python benchmarks/recovery.py
	$(VENV)/bin/python benchmarks/strategies.py
	$(VENV)/bin/python benchmarks/pipeline.py
	$(VENV)/bin/python benchmarks/checkpoint.py
	$(VENV)/bin/python benchmarks/compile.py
	$(VENV)/bin/python benchmarks/memory.py
	$(VENV)/bin/python benchmarks/soak.py
	$(VENV)/bin/python benchmarks/exact.py
	$(VENV)/bin/python benchmarks/scale.py
	$(VENV)/bin/python benchmarks/trackers.py
	$(VENV)/bin/python benchmarks/clusters.py
	$(VENV)/bin/python benchmarks/remote.py
	$(VENV)/bin/python benchmarks/board.py

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch is pinned by the constraints file: an open range can pull gigabytes that this machine cannot use.
$(VENV)/.demo: $(VENV)/.python $(SOURCES)
	$(PIP) '.[torch,recipes]'
	touch $@

$(VENV)/.check: $(VENV)/.python $(NEEDS)
	$(PIP) '.[unit,check]'
	touch $@

$(VENV)/.docs: $(VENV)/.python $(NEEDS)
	$(PIP) '.[docs]'
	touch $@ $(VENV)/.installed

$(VENV)/.unit: $(VENV)/.python $(NEEDS)
	$(PIP) '.[torch,unit]'
	touch $@ $(VENV)/.installed

$(VENV)/.test: $(VENV)/.python $(NEEDS) strategies/horovod/build.py
	$(PIP) '.[torch,tensorflow,ray,horovod,recipes,s3,trackers,export,serve,tune,test]'
	$(PIP) --no-deps tf-keras   # it asks for the large build of TensorFlow by name
	$(VENV)/bin/python -P -m dtrain.strategies.horovod.build
	touch $@ $(VENV)/.unit $(VENV)/.check $(VENV)/.docs $(VENV)/.installed

# After an edit only dtrain itself is installed again. The tests run what is installed, as users do.
$(VENV)/.installed: $(SOURCES)
	rm -rf build
	$(PIP) --no-deps --no-build-isolation .
	rm -rf build *.egg-info
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
