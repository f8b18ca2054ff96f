# Graft: set-up, build, tests. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

SWIFT ?= swift
PYTHON ?= python3
PREFIX ?= /usr/local
# Another LibTorch, by version or by folder; the set-up remembers the choice.
LIBTORCH ?=
# Words to pass on: make test FILTER=GGUF, make bench ROWS=decoding ROUNDS=3
FILTER ?=
ROWS ?=
ROUNDS ?=
export SWIFT PYTHON LIBTORCH

CONFIGURATION := -c release
PRODUCTS := .build/release
ENGINE := $(MAKE) -j2 -f scripts/engine.mk
# Off a terminal (CI, logs) SwiftPM prints a line a file: keep to warnings and errors there.
QUIET := $(shell [ -t 1 ] || echo --quiet)
SWIFT_FILES := Package.swift Sources Tests $(wildcard Examples Benchmarks)

.PHONY: help setup oracle build engine packages test demo bench comparison bench-quick bench-execution bench-methods bench-packing bench-selected bench-storage bench-tokenizer fuzz format lint docs install clean fuzz-coverage

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do \
	    printf '  make %-15s %s\n' "$$name" "$$text"; done

setup: ## Fetch LibTorch, the demo's model and data into .graft (LIBTORCH=<version or folder> selects another LibTorch)
	@scripts/setup.sh

oracle: ## Also fetch the Python packages that tests and benchmarks compare with
	@scripts/setup.sh oracle

build: setup ## Build the command line: .build/release/graft
	@$(ENGINE)
	@$(MAKE) packages
	@echo "Graft: building with Swift (the first time takes minutes) ..."
	@$(SWIFT) build $(CONFIGURATION) $(QUIET) --product graft
	@scripts/place-engine.sh $(PRODUCTS)
	@echo "Graft: ready, $(PRODUCTS)/graft"

engine: setup ## Build the C++ part alone (.build-engine), and put it beside the binaries that are built
	@$(ENGINE)
	@scripts/place-engine.sh $(PRODUCTS) .build/debug

# The Swift packages that Package.swift names; SwiftPM's many lines are shown only when it fails.
packages: .build/workspace-state.json
	@:
.build/workspace-state.json: Package.swift
	@echo "Swift packages: fetching ..."
	@mkdir -p .build && { $(SWIFT) package resolve >.build/resolve.log 2>&1 || { cat .build/resolve.log >&2; exit 1; }; }
	@touch $@

# What went wrong, each once and in few lines: logs are often cut down to their ends.
ISSUES_OF_TESTS := grep -a -A2 'recorded an issue' .build/test.log | grep -a '^[✘↳]' | cut -c1-240 | awk '!seen[$$0]++' | head -20

test: oracle ## Run every test (FILTER=<regular expression> runs some)
	@$(ENGINE)
	@$(MAKE) packages
	@echo "Graft: building the tests with Swift (the first time takes minutes) ..."
	@$(SWIFT) build $(CONFIGURATION) $(QUIET) --build-tests
	@scripts/place-engine.sh $(PRODUCTS)
	@$(SWIFT) test $(CONFIGURATION) --skip-build --disable-xctest $(if $(FILTER),--filter '$(FILTER)') 2>&1 \
	    | tee .build/test.log \
	    || { echo "Graft: failed (all that was printed is in .build/test.log):"; $(ISSUES_OF_TESTS); exit 1; }

demo: build ## Fine-tune SmolLM2-135M on real data and show what it learnt
	@scripts/demo.sh

bench: oracle build ## Measure Graft beside its peers and write docs/benchmarks.md (ROWS=training,start ROUNDS=5)
	@.graft/oracle/bin/python Benchmarks/bench.py --rows '$(ROWS)' $(if $(ROUNDS),--rounds $(ROUNDS))

bench-quick: oracle build ## Check in under 3 minutes that no figure is far beyond its bar
	@.graft/oracle/bin/python Benchmarks/bench.py --quick

bench-packing: oracle build ## Measure packed rows beside rows that are filled up
	@.graft/oracle/bin/python Benchmarks/packing.py

bench-execution: oracle build ## Measure checkpoints, MEFT and IST beside LoRA
	@.graft/oracle/bin/python Benchmarks/execution.py

bench-methods: oracle build ## Measure a step of every method beside LoRA
	@.graft/oracle/bin/python Benchmarks/every_method.py

bench-selected: oracle build ## Measure methods that train selected parameters beside LoRA
	@.graft/oracle/bin/python Benchmarks/selected.py

bench-storage: oracle build ## Measure training over quantised weights beside plain ones
	@.graft/oracle/bin/python Benchmarks/storage.py

bench-tokenizer: oracle packages ## Measure the tokenizers' speed beside the tokenizers package
	@$(SWIFT) build $(CONFIGURATION) $(QUIET) --product TokenizerBenchmark
	@.graft/oracle/bin/python Benchmarks/tokenizer.py

comparison: oracle build ## Compare all methods on one task and write docs/comparison.md
	@.graft/oracle/bin/python Benchmarks/comparison.py

fuzz: build ## Give a reader many broken files (READER=gguf COUNT=100000 SEED=2; without READER every one)
	@$(SWIFT) build $(CONFIGURATION) $(QUIET) --product Fuzzer
	@scripts/place-engine.sh $(PRODUCTS)
	@for reader in $(if $(READER),$(READER),$$($(PRODUCTS)/Fuzzer)); do \
	    OMP_NUM_THREADS=1 nice $(PRODUCTS)/Fuzzer $$reader $(or $(SEED),2) $(or $(COUNT),100000); done

fuzz-coverage: setup ## The same with files chosen by the code that they reach (READER=gguf SECONDS=120)
	@$(ENGINE)
	@scripts/fuzz-coverage.sh $(or $(SECONDS),60) $(READER)

format: ## Rewrite the Swift files in the project's format
	@$(SWIFT) format --in-place --recursive --parallel $(SWIFT_FILES)

lint: ## Check the Swift files' format and style
	@$(SWIFT) format lint --strict --recursive --parallel $(SWIFT_FILES)
	@echo "lint: clean"

docs: build ## Write the tables in the documentation that the program knows
	@scripts/update-docs.sh

install: build ## Copy graft, its engine and LibTorch below PREFIX (/usr/local)
	@scripts/install.sh "$(PREFIX)"

clean: ## Remove what was built; keep what was fetched
	@rm -rf .build .build-engine .build-fuzz
