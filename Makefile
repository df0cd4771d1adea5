.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# BACKEND=cpu or auto installs through uv, which then chooses the build of torch; else plain pip does (Linux: the CUDA
# build, about 3 GB to download; the CPU build is 0.2 GB)
BACKEND ?=

.PHONY: help setup demo test lint bench tables notebooks lab

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(BIN)/.done ## a virtual environment with everything (first: 3 to 6 GB; BACKEND=cpu: 1 GB)

$(BIN)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
ifeq ($(BACKEND),)
	$(BIN)/pip install -q torch torchvision
	$(BIN)/pip install -q -e ".[experiments,parallel,slurm,bank,ray,dev]"
else
	$(BIN)/pip install -q uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --torch-backend=$(BACKEND) torch torchvision
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --torch-backend=$(BACKEND) -e ".[experiments,parallel,slurm,bank,ray,dev]"
endif
	touch $@

demo: setup ## pictures without and with AMG, table, curves, report: about three minutes on two cores
	$(BIN)/python run.py

# processes that run the tests, of one thread each
JOBS ?= 2
test: setup ## all tests but those that need a browser
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not browser"

lint: setup ## ruff and the import contracts
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

bench: setup ## speed, as ratios measured side by side in one run (SIZE=full: Stable Diffusion at its true size)
	for name in $(basename $(notdir $(wildcard benchmarks/bench_*.py))); do $(BIN)/python -m benchmarks.$$name || exit 1; done

# in the closed-form world, and on the lab's networks as <experiment>-<model>
TABLES ?= table1 table2 table3 table4 table5 figure3 figure4 rivals \
	table1-lab_sd table4-lab_sd figure3-lab_sd figure4-lab_sd table2-lab_ddpm table3-lab_ddpm table5-lab_ddpm
# more keys for each of them, e.g. ARGS="n_samples=24 trainer=cpu"
ARGS ?=
tables: setup ## Tables 1-5, Figures 3-4 and every rival, measured (hours on two cores; ARGS=n_samples=24 for a first look); runs/tables.html says claim by claim what holds
	failed=; for table in $(TABLES); do \
	case $$table in *-*) model=model=$${table#*-};; *) model=;; esac; \
	$(BIN)/python run.py experiment=$${table%%-*} $$model $(ARGS) || failed="$$failed,$$table"; done; \
	$(BIN)/python run.py task=overview "task.failed=[$${failed#,}]" && test -z "$$failed"

notebooks: setup ## each notebook as .ipynb with its outputs, from the script of the same name
	$(BIN)/python -m experiments.cli.notebooks notebooks/*.py

lab: setup ## trains the lab's networks again: hours on two cores, resumable
	$(BIN)/python -m experiments.recipes.lab.train_vae
	$(BIN)/python -m experiments.recipes.lab.train_tiny
	$(BIN)/python -m experiments.recipes.lab.train_sd
	$(BIN)/python -m experiments.recipes.lab.train_flow --out .lab/teacher
	$(BIN)/python -m experiments.recipes.lab.train_flow --minutes 9 --distil 2.5 --start .lab/teacher/pipeline
	$(BIN)/python -m experiments.recipes.lab.train_descriptor --name guide --seed 10
	$(BIN)/python -m experiments.recipes.lab.train_descriptor --name judge --seed 20
	$(BIN)/python -m experiments.recipes.lab.train_scorer --seed 30
	$(BIN)/python -m experiments.recipes.lab.train_ddpm
	$(BIN)/python -m experiments.recipes.lab.ship descriptor_guide descriptor_judge scorer lab_sd lab_flow lab_ddpm
	$(BIN)/python run.py -m model=lab_sd guidance=none,full n_samples=1008 name=lab
	$(BIN)/python run.py -m model=lab_ddpm guidance=none,full n_samples=1000 name=lab
	$(BIN)/python -m experiments.recipes.lab.measure lab_sd runs/lab/lab_sd-none-* runs/lab/lab_sd-full-*
	$(BIN)/python -m experiments.recipes.lab.measure lab_ddpm runs/lab/lab_ddpm-none-* runs/lab/lab_ddpm-full-*
