# Everything that a person or CI does here. `make test` starts from nothing but Python and g++.

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# The CPU build, before anything asks for torch: resolved by itself, torch pulls gigabytes of CUDA
# packages. Where the plain version is a CUDA build (it depends on the index), point pip at
# PyTorch's index of CPU builds: make PIP_ARGS="--index-url ..." TORCH=torch==2.13.0+cpu
TORCH ?= torch==2.13.0
PIP_ARGS ?=
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help test lint format bench-decode clean

help:
	@echo "make test          make an environment, install, build, check style and types, run the tests"
	@echo "make lint          style and types alone"
	@echo "make format        rewrite the code in the project's style"
	@echo "make bench-decode  decode a random 7B model and compare with the memory bandwidth (5 GB of disk)"
	@echo "make clean         remove the environment and build folders"

$(VENV)/torch.stamp:
	@echo "== environment in $(VENV), with $(TORCH)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(PIP_ARGS) $(TORCH)
	@touch $@

$(VENV)/install.stamp: $(VENV)/torch.stamp pyproject.toml CMakeLists.txt $(wildcard neuralchat_lite/csrc/*)
	@echo "== build and install"
	$(PIP) --editable '.[test]'
	@touch $@

lint: $(VENV)/install.stamp
	@echo "== style and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror neuralchat_lite/csrc/*.cpp neuralchat_lite/csrc/*.h
	$(BIN)/mypy

test: lint
	@echo "== tests"
	$(BIN)/pytest

format: $(VENV)/install.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i neuralchat_lite/csrc/*.cpp neuralchat_lite/csrc/*.h

bench-decode: $(VENV)/install.stamp
	$(BIN)/python benchmarks/decode.py

clean:
	rm -rf $(VENV) build
