# make demo   quantize a sample model and show what became of it
# make test   all tests
# make lint   style, types and the style budget
# make bench  measurements, side by side with other tools where they are installed; with ZOO=DIR also what each step
#             brings on the models of a zoo, into docs/accuracy.md
# make sweep  every model of a zoo with every preset, into docs/sweep.md; ZOO=DIR names the zoo; SWEEP=--resume goes on
#             with one that was interrupted
# make fuzz   damaged models, recipes and samples; FUZZ_CASES=… of them, FUZZ_SEED=…
# make clean  remove what the targets above made, except .venv
#
# The first of them makes .venv and installs the project into it. Needs Python 3.11 or newer; another one than the
# first found is chosen with PYTHON=…. Without make, see docs/development.md.

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

BIN := .venv/bin
INSTALLED := .venv/.installed
WORKERS ?= 2
ZOO ?= $(QCLI_ZOO)
FUZZ_CASES ?= 20000
FUZZ_SEED ?= $(shell date +%Y%m%d)
CNN := sample_models/cnn

.PHONY: demo test lint bench sweep fuzz clean
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml
	@test -n "$(strip $(PYTHON))" || { echo "error: no Python 3.11 or newer found; name one with PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@mkdir -p out
	$(BIN)/qcli quantize $(CNN)/model.onnx -r $(CNN)/recipe.yaml -d $(CNN)/calib --eval $(CNN)/eval \
		-o out/cnn.int8.onnx --gate 'accuracy.top1.drop <= 0.01' --gate 'size.ratio <= 0.35' --report out/cnn.json

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tests/test_style.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(if $(strip $(ZOO)),--zoo $(ZOO))
ifneq ($(strip $(ZOO)),)
	$(BIN)/python -m benchmarks ablation --zoo $(ZOO) -o docs/accuracy.md
endif

sweep: $(INSTALLED)
	$(BIN)/python -m benchmarks sweep --zoo $(ZOO) -o docs/sweep.md $(SWEEP)

fuzz: $(INSTALLED)
	@echo "FUZZ_SEED=$(FUZZ_SEED) FUZZ_CASES=$(FUZZ_CASES)"
	FUZZ_SEED=$(FUZZ_SEED) FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -n $(WORKERS) tests/fuzz/test_fuzz.py

clean:
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find qcli tests sample_models benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
