"""Memory and time of Llama-2 on 1 to 8 GPUs, planned by pretrain.py: python3 -m benchmarks.plans

Writes docs/benchmarks/plans.md, with the stages of ZeRO on several machines, the section of
docs/getting-started/hardware.md on recipes, and the line "Planned for" of the recipes. Nothing is measured: it is what
`--dry_run` prints for many machines.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import PROJECT_DIR, table, write_section
from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.cli.program import run_program
from pretraining.planning.cost import plan_costs
from pretraining.planning.fit import fits
from pretraining.planning.flops import num_parameters
from pretraining.planning.suggestions import find_suggestions
from pretraining.planning.table import PlannedRun
from pretraining.planning.zero.traffic import sent_per_step
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.plan import make_plan

RESULTS_PATH = PROJECT_DIR / "docs/benchmarks/plans.md"
HARDWARE_PATH = PROJECT_DIR / "docs/getting-started/hardware.md"
RECIPES = ("llama2_7b", "llama2_13b", "llama2_70b")
GPU_TYPES = ("h100", "h200")
NUM_GPUS = (1, 2, 4, 8)
HOST_MEMORY = "2TB"
PLANNED = re.compile(r"^# Planned for (\d+) x (\w+):.*$", re.MULTILINE)

HEAD = f"""\
# What Llama-2 needs, as planned

Planned, not measured: `python3 -m benchmarks.plans` writes this from the plan that `pretrain.py --dry_run` prints,
for the recipes as they are (blocks of 4,096 tokens, one at a time, activation checkpointing, AdamW, bf16 with gradients
summed in fp32 where that fits) on machines with {HOST_MEMORY} of host memory. Memory is in GB of 10^9 bytes; 96 % of
what a GPU reports is usable: 80.8 GB of an H100, 142.4 GB of an H200. Hours are arithmetic for 10^9 tokens, with the
change if there is one: GPUs compute at 40 % of their peak, recomputation included, links carry three quarters of their
published bandwidth. They are of one machine; the network between several is in the second table.

"""
STAGES_TITLE = "Stages and machines"
STAGES_HEAD = """\
**Planned, not measured**: machines of eight H100 with NVLink, recipes as above, 4,194,304 tokens per step. "Sent" is
what each GPU sends per optimizer step. "Network" is what enters, and what leaves, each machine: NCCL's rings pass every
byte over each machine once. Seconds are those of a network of 400 or 100 Gbit/s per machine
(`--assumed_network_gbits`). ZeRO-3 and hpZ hide them behind the computation where they can, ZeRO-1 and ZeRO-2 do not.

"""
STAGE_COLUMNS = (
    *("recipe", "machines x GPUs", "micro steps", "config", "GB per GPU", "GB sent", "GB network"),
    *("s at 400 Gbit/s", "s at 100 Gbit/s"),
)
STAGE_CONFIGS = ("ds_config_zero1.json", "ds_config_zero2.json", "ds_config.json", "ds_config_hpz.json")
STAGE_RECIPES = ("tinyllama_1b", "llama2_7b", "llama2_70b")
NUM_NODES = (1, 2, 4)
COLUMNS = ("recipe", "GPUs", "GB per GPU", "fits", "hours for 10^9 tokens")
RECIPES_TITLE = "Recipes for your machine"
RECIPES_HEAD = """\
**Planned, not measured**, and the speed is arithmetic: GPUs compute at 40 % of their peak, recomputation included, and
links carry three quarters of their published bandwidth. `python3 -m benchmarks.plans` writes this table. Only
`recipes/llama2_7b/1x141gb.yaml` is measured, by its benchmark recipe on one H200: 10,595 tokens/s
([GPU results](../benchmarks/gpu.md)).

"""
RECIPE_COLUMNS = ("recipe", "planned for", "GB per GPU", "usable", "GB of host memory", "tokens/s/GPU")

logger = logging.getLogger("pretraining.plans")


def main(_: Sequence[str]) -> None:
    """Plan all runs, and write the tables and the lines of the recipes."""
    rows = [_cells(recipe, kind, number) for recipe in RECIPES for kind in GPU_TYPES for number in NUM_GPUS]
    stages = f"\n## {STAGES_TITLE}\n\n{STAGES_HEAD}{table(STAGE_COLUMNS, stage_rows())}\n"
    RESULTS_PATH.write_text(HEAD + table(COLUMNS, rows) + "\n" + stages, encoding="utf-8")
    for path in planned_recipes():
        path.write_text(PLANNED.sub(planned_line(path), path.read_text(encoding="utf-8")), encoding="utf-8")
    write_section(HARDWARE_PATH, RECIPES_TITLE, recipes_section())
    logger.info("wrote %s, %s and the recipes", RESULTS_PATH, HARDWARE_PATH)


def stage_rows() -> list[list[str]]:
    """Each recipe on one, two and four machines with each stage; hpZ is for several."""
    return [
        _stage_cells(recipe, config, nodes)
        for recipe in STAGE_RECIPES
        for nodes in NUM_NODES
        for config in STAGE_CONFIGS
        if nodes > 1 or "hpz" not in config
    ]


def _stage_cells(recipe: str, config: str, nodes: int) -> list[str]:
    words = f"--recipe {PROJECT_DIR / f'recipes/{recipe}.yaml'} --dry_run --gpu_type h100 --num_gpus 8 "
    words += f"--num_nodes {nodes} --deepspeed {PROJECT_DIR / config} --host_memory {HOST_MEMORY}"
    arguments = parse_pretrain_arguments("", words.split())
    run = make_plan(arguments, planned_machine(arguments.plan), None)
    num_micro_steps = run.batch.gradient_accumulation_steps
    sent = sent_per_step(run.layout, num_micro_steps)
    network = sent.to_all if nodes > 1 else 0.0
    fitting = "" if fits(run.layout, run.machine) else " (does not fit)"
    seconds = [f"{8 * network / gbits / 1e9:.1f}" if nodes > 1 else "" for gbits in (400, 100)]
    sizes = [f"{run.footprint.gpu_bytes / 1e9:.1f}{fitting}", f"{sent.total / 1e9:,.1f}", f"{network / 1e9:,.1f}"]
    return [recipe, f"{nodes} x 8", f"{num_micro_steps:,}", f"`{config}`", *sizes, *seconds]


def planned_recipes() -> list[Path]:
    """Recipes with a line "Planned for"."""
    return [path for path in sorted((PROJECT_DIR / "recipes").rglob("*.yaml")) if PLANNED.search(path.read_text())]


def machine_recipes() -> list[Path]:
    """Recipes that are made for one machine, in a folder for their model."""
    return [path for path in planned_recipes() if path.parent.name != "recipes"]


def planned_run(path: Path) -> PlannedRun:
    """The plan of a recipe for the machine of its line."""
    found = PLANNED.search(path.read_text(encoding="utf-8"))
    assert found is not None, path
    return _plan(path, found[2], int(found[1]))[1]


def planned_line(path: Path) -> str:
    """The line of a recipe with the machine, its memory and the speed."""
    run = planned_run(path)
    assert run.costs is not None, "the kinds are listed"
    memory = f"{run.footprint.gpu_bytes / 1e9:.1f} of {run.machine.usable_gpu_bytes / 1e9:.1f} GB per GPU"
    host = f"{run.footprint.host_bytes / 1e9:,.0f} GB of host memory"
    speed = f"{run.costs.tokens_per_second_per_gpu:,.0f} tokens/s/GPU"
    return f"# Planned for {run.machine.name}: {memory}, {host}; by arithmetic, not measured, {speed}."


def recipes_section() -> str:
    """The table of hardware.md."""
    rows = []
    runs = [(planned_run(path), path) for path in machine_recipes()]
    for run, path in sorted(runs, key=lambda pair: _size(pair[0])):
        assert run.costs is not None, "the kinds are listed"
        sizes = (run.footprint.gpu_bytes, run.machine.usable_gpu_bytes)
        cells = [f"`{path.relative_to(PROJECT_DIR)}`", run.machine.name, *(f"{size / 1e9:.1f}" for size in sizes)]
        rows.append([*cells, f"{run.footprint.host_bytes / 1e9:,.0f}", f"{run.costs.tokens_per_second_per_gpu:,.0f}"])
    return RECIPES_HEAD + table(RECIPE_COLUMNS, rows)


def _size(run: PlannedRun) -> tuple[int, int, int]:
    """By model, GPUs and their memory."""
    return num_parameters(run.layout.shape), run.machine.num_processes, run.machine.usable_gpu_bytes


def _plan(path: Path, kind: str, number: int) -> tuple[PretrainArguments, PlannedRun]:
    words = f"--recipe {path} --dry_run --gpu_type {kind} --num_gpus {number} --host_memory {HOST_MEMORY}".split()
    arguments = parse_pretrain_arguments("", words)
    return arguments, make_plan(arguments, planned_machine(arguments.plan), None)


def _cells(recipe: str, kind: str, number: int) -> list[str]:
    arguments, run = _plan(PROJECT_DIR / f"recipes/{recipe}.yaml", kind, number)
    return [recipe, run.machine.name, f"{run.footprint.gpu_bytes / 1e9:.1f}", *_verdict(arguments, run)]


def _verdict(arguments: PretrainArguments, run: PlannedRun) -> tuple[str, str]:
    """Whether a run fits, or the first change that makes it fit, with its memory; and the hours."""
    assert run.costs is not None, "the kinds are listed"
    if fits(run.layout, run.machine):
        sums = ", gradients in bf16" if run.layout.grad_accum_dtype == "bf16" else ""
        return f"yes{sums}", f"{run.costs.hours:.1f}"
    suggestions = find_suggestions(run.layout, run.machine, run.batch)
    if not suggestions:
        return "no", ""
    first = suggestions[0]
    batch = run.batch.divided_for(first.layout)
    costs = plan_costs(arguments.plan, first.layout, batch, run.machine.gpu_type, num_tokens=None)
    assert costs is not None, "the kinds are listed"
    return f"with `{' '.join(first.flags)}`: {first.needs}", f"{costs.hours:.1f}"


if __name__ == "__main__":
    run_program(main)
