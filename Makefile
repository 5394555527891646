# Everything a reader needs; `make help` lists it. Variables, with their defaults:
PROFILE   ?= mini#      mini: rendered worlds on a laptop | smoke: the same in seconds, meaningless numbers
#                       mini_m2f: Table 1 on them with the Mask2Former head
#                       paper: real data, one recipe | soma, rein: real data, the configuration of that paper
DATA_ROOT ?= $(if $(filter mini mini_% smoke,$(PROFILE)),data/mini)# where the data sets lie; real ones have no default place
DEVICE    ?= cpu#       cpu | cuda
WORKERS   ?= $(if $(filter cuda%,$(DEVICE)),1,2)# cells trained side by side; with DEVICE=cuda the GPUs are taken in turn
PLACEMENT ?= default#   default | both | all | last-two-thirds: which blocks every method may adapt
SEEDS     ?=#           e.g. 5,6,7 (default: the protocol's)
METHODS   ?=#           e.g. soma,lora (default: the table's)
METHOD    ?=#           of compare: path/to/my_method.py:MyMethod, or a name
TABLE     ?= table1#    of compare: whose rows are the baselines
RATE      ?=#           of compare: learning rate of the backbone, such as tune finds (default: the protocol's)
REPLACE   ?=#           of compare: yes runs again what was recorded before METHOD changed
RECIPE    ?= controlled# controlled | as-published | equal-budget
RECORDS   ?=#           of table1 ...: folders of records, parted by spaces (default: the committed reference)
OUT       ?= results#   runs go to OUT/runs, tables to OUT/tables
PYTHON    ?= python3#   3.11 or later, to make the environment with
# An empty OUT would write to /runs.
override OUT := $(or $(strip $(OUT)),results)

VENV  := .venv
BENCH := $(VENV)/bin/python -m benchmarks
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup mini reproduce-table1 reproduce-table2 reproduce-table3 reproduce-table4 reproduce-table5 table1 table2 table3 table4 table5 compare report test check bench clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20
	@printf '\nVariables, such as `make reproduce-table1 METHODS=freeze,soma`:\n\n'
	@sed -nE 's/\$$\(if .*\)#/...#/; s/^([A-Z_]+) +\?= *([^#]*)# */\1\t\2\t/p; s/^# {10,}/\t\t/p' \
	$(firstword $(MAKEFILE_LIST)) | expand -t 11,23

setup: $(READY)  ## create the environment in .venv from requirements.lock

$(READY): requirements.lock
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): up to 5.4 GB on disk, 3.4 of it CUDA (Linux wheels bring it on any machine)'
	$(VENV)/bin/python -m pip install --require-hashes -r requirements.lock
	touch $@

mini: $(READY)  ## render the mini worlds into DATA_ROOT
	$(BENCH) mini render --root $(strip $(DATA_ROOT))

SELECTION_FLAGS = --profile $(strip $(PROFILE)) --placement $(strip $(PLACEMENT)) --recipe $(strip $(RECIPE)) \
	$(ROOT_FLAG) $(if $(strip $(SEEDS)),--seeds $(strip $(SEEDS))) $(if $(strip $(METHODS)),--methods $(strip $(METHODS)))
ROOT_FLAG = $(if $(strip $(DATA_ROOT)),--data-root $(strip $(DATA_ROOT)))

# What a table reads is rendered, not all of the worlds.
TABLE3 := table3a table3b table3c table3d
TABLES := table1 table2 $(TABLE3) table4
WORLDS := $(TABLES:%=worlds-%)
.PHONY: $(WORLDS)
$(WORLDS): worlds-%: $(READY)
	$(BENCH) mini render --root $(strip $(DATA_ROOT)) --table $*

RENDERED = $(filter mini mini_% smoke,$(PROFILE))
PREPARED = $(if $(RENDERED),mini,setup)
$(foreach table,$(TABLES),$(eval reproduce-$(table): $(if $(RENDERED),worlds-$(table),setup)))
# A failed cell (exit 1) still gets its table, which says so; anything to fix (exit 2) stops here.
reproduce-table1:  ## train every cell of Table 1 (segmentation) here and print the table
reproduce-table2:  ## train every cell of Table 2 (detection) here and print the table
reproduce-table3:  ## Table 3 (other sources, adverse weather) in four parts; reproduce-table3a: one of them
	@$(MAKE) --no-print-directory --keep-going $(TABLE3:%=reproduce-%)
reproduce-table4:  ## train every cell of Table 4 (what makes SoMA work) here and print the table
reproduce-table1 reproduce-table2 reproduce-table4 $(TABLE3:%=reproduce-%):
	@$(BENCH) sweep $(@:reproduce-%=%) $(SELECTION_FLAGS) --workers $(strip $(WORKERS)) --device $(strip $(DEVICE)) --out '$(OUT)/runs'; \
	status=$$?; [ $$status -gt 1 ] || \
	$(BENCH) table $(@:reproduce-%=%) $(SELECTION_FLAGS) --records '$(OUT)/runs' --against results/reference --write '$(OUT)/tables' \
	|| status=$$?; exit $$status

table1:  ## print Table 1 from records that are there, without training
table2:  ## print Table 2 from records that are there, without training
table3:  ## print the four parts of Table 3; RECORDS=results/runs: those of your own runs
table4:  ## print Table 4 (what makes SoMA work, one factor at a time)
table1 table2 table3 table4 $(TABLE3): $(READY)
	@status=0; $(foreach table,$(or $(filter-out table3,$@),$(TABLE3)),$(BENCH) table $(table) $(SELECTION_FLAGS) \
	$(RECORDS:%=--records '%') --write '$(OUT)/tables' || status=$$?;) exit $$status

table5: $(READY)  ## print Table 5 (what every method costs): the mini backbone, and ViT-L
	@$(BENCH) bench costs --profile mini --read results/costs
	@$(BENCH) bench costs --profile paper --read results/costs

reproduce-table5: $(READY)  ## measure Table 5 here; PROFILE=paper: ViT-L (a few minutes; half an hour)
	@$(BENCH) bench costs --profile $(strip $(PROFILE)) --device $(strip $(DEVICE)) \
	$(if $(strip $(METHODS)),--methods '$(strip $(METHODS))') --write '$(OUT)/tables'

ifneq ($(filter compare,$(MAKECMDGOALS)),)
$(if $(strip $(METHOD)),,$(error compare what? give METHOD=path/to/my_method.py:MyMethod))
endif

compare: WORKERS = 5# one per seed, on two cores too: two would leave a core idle in the last round
compare: $(if $(and $(RENDERED),$(filter $(strip $(TABLE)),$(TABLES))),worlds-$(strip $(TABLE)),$(PREPARED))  ## check METHOD=my_method.py:MyMethod, train it, say what differs from the baselines by more than noise
	@$(BENCH) compare '$(strip $(METHOD))' --table $(strip $(TABLE)) --profile $(strip $(PROFILE)) --placement $(strip $(PLACEMENT)) \
	--recipe $(strip $(RECIPE)) $(ROOT_FLAG) $(if $(strip $(SEEDS)),--seeds $(strip $(SEEDS))) \
	$(if $(strip $(RATE)),--set recipe.backbone_lr=$(strip $(RATE))) --workers $(strip $(WORKERS)) --device $(strip $(DEVICE)) --out '$(OUT)/runs' --write '$(OUT)/tables' $(if $(strip $(REPLACE)),--replace)

report: $(PREPARED)  ## write every table, chart and picture of PROFILE as one HTML page, OUT/tables/report.html; RECORDS= for others
	$(BENCH) report --profile $(strip $(PROFILE)) --recipe $(strip $(RECIPE)) $(ROOT_FLAG) \
	$(foreach folder,$(RECORDS),--records '$(folder)') --out '$(OUT)/tables/report.html'

test: $(READY)  ## run the tests
	$(VENV)/bin/python -m pytest -n 2

check: $(READY)  ## lint and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(READY)  ## print render speed, training step and evaluation speed
	$(BENCH) bench

clean:  ## remove what was made here: runs, rendered worlds, caches (never the reference)
	rm -rf results/runs data/mini .pytest_cache .ruff_cache .hypothesis
