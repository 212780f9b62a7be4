# Everything on a fresh machine with Python: `make demo` and `make test`.
#
#   make demo                     teacher, stages 1-3, table and image, from nothing
#   make teacher|init|csd|align   one stage, and whatever it needs that is missing (FAMILY=llamagen: adapt, too)
#   make frechet                  stage 4: the Fréchet distance of features as the loss
#   make frechet_benchmark        stage 4 to real images with seeds 0, 1, 2 -> benchmarks/frechet_$(FAMILY).json
#   make dd1                      the baseline Distilled Decoding 1, from the same teacher
#   make evaluate                 the comparison table of the last stage
#   make benchmark                DD2 and DD1 with seeds 0, 1, 2 and equal training time -> benchmarks/digits_$(FAMILY).json
#   make mnist                    the same on 28x28 pixels, 49 or 88 tokens -> benchmarks/mnist_$(FAMILY).json; hours, of which
#                                 an interrupted one loses minutes. Any other target with IMAGES=mnist: make csd IMAGES=mnist
#   make scarce                   DD2 and DD1 from 1,000 sequences of the teacher -> benchmarks/scarce_$(FAMILY).json
#   make tables                   the exact tables: total variation against iterations -> benchmarks/tables.json
#   make growing                  DD2 and DD1 on tables of 2 to 6 tokens -> benchmarks/growing/
#   make ablations                the paper's choices one at a time, PROCESSES runs at once -> docs/ablations.md,
#                                 benchmarks/ablations.json; interrupted, it continues; hours
#   make scale                    DD2 and DD1 at growing numbers of tokens and codes, PROCESSES runs at once -> docs/scale.md,
#                                 benchmarks/scale.json; interrupted, it continues; a day. PHOTOS=folder adds photographs
#   make reliability              50 kills, two processes, bfloat16, faults -> docs/reliability.md, benchmarks/reliability.json
#   make test | lint | docs      (docs: the site in docs/_build)

FAMILY ?= var
IMAGES ?= digits
PYTHON ?= python3
SEED   ?= 0

# what configs and runs are named by: the family, and the images where they are not the 8x8 digits
NAME  = $(IMAGES:digits=)$(if $(IMAGES:digits=),_)$(FAMILY)
RUNS ?= runs/$(NAME)

# the stages that make the teacher; the last one leaves what is distilled
TEACHERS_llamagen := teacher adapt
TEACHER ?= runs/$(NAME)/$(or $(lastword $(TEACHERS_$(NAME))),teacher)
ORIGINAL = $(dir $(TEACHER))teacher

# networks of this size gain half as much again from a second thread and nothing from a third; on a machine that
# is busy with other work, or for several runs at a time, set it to 1
export OMP_NUM_THREADS ?= 2

VENV := .venv
BIN  := $(VENV)/bin
DD2  := $(BIN)/dd2
# on the CPU wherever there is a GPU, too: the budgets are for it; an unfinished run is resumed
FIT   = $(DD2) fit --seed_everything $(SEED) --trainer.accelerator cpu --ckpt_path auto

comma := ,
space := $(subst ,, )

# budgets of `make benchmark`, in iterations; those of DD1 take the processor time of DD2's three stages, pairs included
BENCH_SEEDS := 0 1 2
BENCH_init_var       := 1000
BENCH_init_llamagen  := 1000
BENCH_csd_var        := 2400
BENCH_csd_llamagen   := 3000
BENCH_align_var      := 200
BENCH_align_llamagen := 300
BENCH_dd1_var        := 11000
BENCH_dd1_llamagen   := 20000
BENCH_init_mnist_var       := 400
BENCH_init_mnist_llamagen  := 400
BENCH_csd_mnist_var        := 600
BENCH_csd_mnist_llamagen   := 750
BENCH_align_mnist_var      := 120
BENCH_align_mnist_llamagen := 60
BENCH_dd1_mnist_var        := 3000
BENCH_dd1_mnist_llamagen   := 3900

# sequences and iterations of DD1 of `make scarce`
SCARCE     := 1000
SCARCE_dd1 := 250 500 1000 2000

# sequences sampled from the teacher, where it is not the config that says how many
sequences = $(if $(SEQUENCES),--data.cache_size $(SEQUENCES))

steps = $(if $(STEPS_$(notdir $(1))),--trainer.max_steps $(STEPS_$(notdir $(1))))

.PHONY: demo test lint docs teacher adapt init csd align frechet dd1 evaluate benchmark frechet_benchmark mnist scarce tables growing ablations scale scale_teachers reliability install clean
.DELETE_ON_ERROR:

demo: evaluate

teacher:  $(ORIGINAL)/config.json
adapt:    $(dir $(TEACHER))adapt/config.json
init:     $(RUNS)/init/config.json
csd:      $(RUNS)/csd/config.json
align:    $(RUNS)/align/config.json
frechet:  $(RUNS)/frechet/config.json
dd1:      $(RUNS)/dd1/config.json
evaluate: $(RUNS)/report/results.json

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@echo "installing PyTorch and dd2-lightning into $(VENV): one to three minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# a stage that is there is not made again, whatever the dates of its files: a directory that was copied has new ones
$(ORIGINAL)/config.json: | install
	$(FIT) --config configs/teacher_$(NAME).yaml --trainer.default_root_dir $(@D) $(call steps,$(@D))

$(dir $(TEACHER))adapt/config.json: | $(ORIGINAL)/config.json install
	$(FIT) --config configs/adapt_$(NAME).yaml --trainer.default_root_dir $(@D) \
		--model.teacher $(ORIGINAL) --data.cache_dir $(@D)/cache $(call steps,$(@D))

$(RUNS)/init/config.json: | $(TEACHER)/config.json install
	$(FIT) --config configs/init_$(NAME).yaml --trainer.default_root_dir $(@D) \
		--model.teacher $(TEACHER) --data.cache_dir $(RUNS)/cache $(sequences) $(call steps,$(@D))

$(RUNS)/csd/config.json: | $(RUNS)/init/config.json install
	$(FIT) --config configs/csd_$(NAME).yaml --trainer.default_root_dir $(@D) \
		--model.teacher $(TEACHER) --model.init_from $(RUNS)/init $(call steps,$(@D))

$(RUNS)/align/config.json: | $(RUNS)/csd/config.json install
	$(FIT) --config configs/align_$(NAME).yaml --trainer.default_root_dir $(@D) \
		--model.teacher $(TEACHER) --model.init_from $(RUNS)/csd $(call steps,$(@D))

$(RUNS)/frechet/config.json: | $(RUNS)/align/config.json install
	$(FIT) --config configs/frechet_$(NAME).yaml --trainer.default_root_dir $(@D) \
		--model.teacher $(TEACHER) --model.init_from $(RUNS)/align $(call steps,$(@D))

$(RUNS)/frechet_teacher/config.json: | $(RUNS)/align/config.json install
	$(FIT) --config configs/frechet_$(NAME).yaml --trainer.default_root_dir $(@D) --model.teacher $(TEACHER) \
		--model.init_from $(RUNS)/align --model.features '[{network: classifier, seed: 1, reference: teacher}]' \
		$(call steps,$(@D))

$(RUNS)/dd1/config.json: | $(TEACHER)/config.json install
	$(FIT) --config configs/dd1_$(NAME).yaml --trainer.default_root_dir $(@D) \
		--model.teacher $(TEACHER) --data.cache_dir $(RUNS)/pairs $(sequences) $(call steps,$(@D))

$(RUNS)/dd1-%/config.json: | $(TEACHER)/config.json install
	$(FIT) --config configs/dd1_$(NAME).yaml --trainer.default_root_dir $(@D) --trainer.max_steps $* \
		--model.teacher $(TEACHER) --data.cache_dir $(RUNS)/pairs $(sequences)

# runs of DD1 and stage 4 that are there are in the table
$(RUNS)/report/results.json: $(RUNS)/align/config.json $(wildcard $(RUNS)/dd1*/config.json $(RUNS)/frechet/config.json) | install
	$(DD2) evaluate --config configs/evaluate_$(NAME).yaml $(SAMPLERS) \
		--teacher $(TEACHER) --runs $(RUNS) --seed $(SEED) --device cpu --output $@

benched = RUNS=runs/$(NAME)/seed$* TEACHER=$(TEACHER) SEED=$* \
	$(foreach stage,init csd align dd1,STEPS_$(stage)=$(BENCH_$(stage)_$(NAME)))

# the teacher is the same for all seeds: what is measured is its distillation
seed%: | $(TEACHER)/config.json
	$(MAKE) align dd1 $(benched)
	$(MAKE) evaluate $(benched)

# one report of all seeds whose runs lie in $(1)
summary = $(DD2) summary --output $(2) \
	--results '[$(subst $(space),$(comma),$(patsubst %,$(1)/seed%/report/results.json,$(BENCH_SEEDS)))]'

benchmark: $(addprefix seed,$(BENCH_SEEDS))
	$(call summary,runs/$(NAME),benchmarks/$(IMAGES)_$(FAMILY).json)

# stage 4 after `make benchmark`, whose runs it takes if they are there; made anew are those that are missing
frechet_seed%: | $(TEACHER)/config.json
	$(MAKE) runs/$(NAME)/seed$*/frechet/config.json $(benched)

frechet_benchmark: $(addprefix frechet_seed,$(BENCH_SEEDS))
	$(BIN)/python -m benchmarks.frechet $(TEACHER) runs/$(NAME) benchmarks/frechet_$(NAME).json

mnist:
	$(MAKE) benchmark IMAGES=mnist

# both methods from few sequences of the teacher, DD2 with the budgets of the configs; DD1, which soon knows its pairs
# by heart, stops at several points
scarcely = RUNS=runs/$(NAME)/scarce/seed$* TEACHER=$(TEACHER) SEED=$* SEQUENCES=$(SCARCE) \
	SAMPLERS='--config configs/scarce.yaml'

scarce%: | $(TEACHER)/config.json
	$(MAKE) align $(scarcely)
	$(MAKE) $(patsubst %,runs/$(NAME)/scarce/seed$*/dd1-%/config.json,$(SCARCE_dd1)) $(scarcely)
	$(MAKE) evaluate $(scarcely)

scarce: $(addprefix scarce,$(BENCH_SEEDS))
	$(call summary,runs/$(NAME)/scarce,benchmarks/scarce_$(NAME).json)

tables: | install
	$(BIN)/python -m benchmarks.tables

growing: $(patsubst %,runs/growing/%.json,2 3 4 5 6)
	mkdir -p benchmarks/growing
	cp $^ benchmarks/growing

# DD2 and DD1 on tables of n tokens, for about as many seconds
runs/growing/%.json: | install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.tables --output $@ --tokens $* --every 500 \
		--init_iterations 1000 --iterations 1500 --dd1_iterations 3000

PROCESSES ?= 2
ABLATIONS  = OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablations

# a run that fails does not keep the others from being done; the report names it
missing_runs = $(ABLATIONS) missing $(1) | xargs -r -L 1 -P $(PROCESSES) env $(ABLATIONS) run

# its digits are those of the VAR, whatever FAMILY says
ablations: | install
	$(MAKE) teacher FAMILY=var IMAGES=digits
	-$(call missing_runs,init)
	-$(call missing_runs,csd)
	$(ABLATIONS) report

PHOTOS ?=
SCALE   = OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale

# teachers of the study: families and image sets; photographs where there is a folder
scale_teachers:
	$(MAKE) teacher FAMILY=var
	$(MAKE) adapt FAMILY=llamagen
	$(MAKE) teacher FAMILY=var IMAGES=mnist
	$(MAKE) teacher FAMILY=llamagen IMAGES=mnist
	$(if $(PHOTOS),$(MAKE) runs/photos16_llamagen/teacher/config.json runs/photos64_llamagen/teacher/config.json)

runs/photos%_llamagen/teacher/config.json: | install
	$(FIT) --config benchmarks/configs/teacher_photos$*.yaml --trainer.default_root_dir $(@D) --data.folder $(PHOTOS)

# a run that fails does not keep the others from being done
scale: scale_teachers
	-$(SCALE) missing | xargs -r -L 1 -P $(PROCESSES) env $(SCALE) run
	$(SCALE) report

# tiny runs; what is done lies in runs/reliability and is not done again
reliability: | install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability

# on the CPU; what needs a GPU runs with `pytest -m gpu`
test: | install
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: | install
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

lint: | install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf runs
