# Every target sets up the virtual environment first if it is missing, incomplete or older than the requirements.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= tests
WORKERS ?= 2
BENCH_ARGS ?=
BENCH_JSON ?= build/benchmarks.json
TABLE ?=
DATA ?=
ARGS ?=
BENCH_PAGE ?= $(if $(BENCH_ARGS),build,docs)/BENCHMARKS.md
.DEFAULT_GOAL := help
.PHONY: install demo reproduce test test-all tutorial reliability lint bench gpu-check sync-bundles package help

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a file's tests stay in one process, since they share what they have trained; each process has one thread
SHARED_OUT = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'PYTHON=python3.11   the interpreter of the virtual environment (3.11 or newer)'
	@echo 'VENV=.venv          its folder'
	@echo 'PYTEST_ARGS=...     arguments of make test and make test-all, e.g. PYTEST_ARGS="tests/ops -x"'
	@echo 'WORKERS=4           how many processes share the tests, by default 2; each takes up to 5 GB of memory'
	@echo 'BENCH_ARGS=...      arguments of make bench, e.g. BENCH_ARGS="-k scan"; its page is then build/BENCHMARKS.md'
	@echo 'TABLE=, DATA=       of make reproduce: few_labels, networks, mask_ratio, components, scan, pretraining; the folder of the data'
	@echo 'ARGS=...            further options, e.g. ARGS="--jobs 2 --dry_run"; ARGS=--help lists them'
	@echo 'Without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes the first download much smaller.'

install: $(STAMP)  ## set up the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
			|| { echo '$(PYTHON) must be Python 3.11 or newer; name another one: make PYTHON=...' >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install -c constraints.txt '$(TORCH)'
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

test: $(STAMP)  ## run the tests of every behaviour, in a few minutes
	$(SHARED_OUT) -m 'not slow' $(PYTEST_ARGS)

test-all: $(STAMP)  ## run every test: the slow ones, too
	$(SHARED_OUT) $(PYTEST_ARGS)

tutorial: $(STAMP)  ## execute docs/tutorial.ipynb anew, on synthetic data, and store its outputs in it
	env -u MAMBAMIM_HIPPOCAMPUS $(BIN)/python -m pytest --nbmake --overwrite docs/tutorial.ipynb
	$(BIN)/python .ci/clean_tutorial.py

reliability: $(STAMP)  ## write docs/RELIABILITY.md from what the tests bring about
	$(SHARED_OUT) tests --write-reliability

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## measure the fast paths against their baselines and write docs/BENCHMARKS.md
	@mkdir -p $(dir $(BENCH_JSON))
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-json $(BENCH_JSON) -m 'not long' $(BENCH_ARGS)
	$(BIN)/python tests/benchmarks/page.py $(BENCH_JSON) --output $(BENCH_PAGE)

gpu-check: $(STAMP)  ## check a CUDA machine in ten minutes: build/gpu_check/gpu_check.md
	$(BIN)/python .ci/gpu_check.py $(ARGS)

sync-bundles: $(STAMP)  ## copy what the bundles share from the source bundle to the others, write their model cards
	$(BIN)/python .ci/sync_bundles.py
	$(BIN)/python .ci/model_cards.py

reproduce: $(STAMP)  ## run the rows of a paper's table on your data: TABLE=mask_ratio DATA=/path [ARGS="--jobs 2"]
	$(BIN)/python -m mambamim_nets.reproduce --table '$(TABLE)' --data '$(DATA)' $(ARGS)

package: $(STAMP)  ## write dist/<bundle>_v<version>.zip and dist/SHA256SUMS
	$(BIN)/python .ci/package_bundles.py

# The demo writes below DEMO only, and starts afresh each time. It is the chain that a person's own data goes through:
# put the folder that holds their dataset.json in the place of DEMO_DATA.
DEMO := build/demo
DEMO_DATA := $(DEMO)/data
RUN := $(BIN)/python -m monai.bundle run --config_file
SEG := bundles/msd_seg/configs
PRE := bundles/pretrain/configs
step = @printf '\n== %s\n' $(1)

demo: $(STAMP)  ## pre-train, fine-tune, evaluate and segment on synthetic data, in a few minutes
	@rm -rf $(DEMO)
	$(call step,'1/7 Make synthetic MR-like data: 20 labelled scans and 2 new ones')
	$(BIN)/python -c 'from mambamim_nets import phantom; phantom.write("$(DEMO_DATA)", "hippocampus", cases=20)'
	$(call step,'2/7 Prepare a store of all scans that crops are read from')
	$(BIN)/python -m mambamim_nets.prepare --sources $(DEMO_DATA) --store $(DEMO)/store --intensity mr --spacing '[1.0,1.0,1.0]'
	$(call step,'3/7 Pre-train the encoder on crops from the store without labels')
	$(RUN) "['$(PRE)/train.json','$(PRE)/store.json']" --store $(DEMO)/store --intensity mr --spacing '[1.0,1.0,1.0]' \
		--roi_size '[32,48,32]' --augmentation '[]' --batch_size 4 --learning_rate 0.001 \
		--epoch_iterations 6 --max_epochs 15 --output_dir $(DEMO)/pretrain
	$(call step,'4/7 Fine-tune a segmentation network that starts from this encoder (in too few epochs for random fields of view)')
	$(RUN) $(SEG)/train.json --dataset_dir $(DEMO_DATA) --pretrained $(DEMO)/pretrain/encoder.pt --max_epochs 20 --field_of_view '[]' \
		--output_dir $(DEMO)/finetune
	$(call step,'5/7 Evaluate it on the held-out fold')
	$(RUN) "['$(SEG)/train.json','$(SEG)/evaluate.json']" --dataset_dir $(DEMO_DATA) --output_dir $(DEMO)/finetune
	$(call step,'6/7 Segment the new scans')
	$(RUN) $(SEG)/inference.json --input $(DEMO_DATA)/imagesTs --checkpoint $(DEMO)/finetune/model_best.pt \
		--output_dir $(DEMO)/predictions
	$(call step,'7/7 Results: synthetic data; they say nothing about patients')
	@cat $(DEMO)/finetune/eval/summary.md
	@printf '\nPictures (reconstruction of hidden blocks, segmentation overlays):\n'
	@find $(DEMO) -name reconstruction.png -o -name '*_overlay.png' -o -name '*_preview.png' | sort
