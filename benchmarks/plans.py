"""Memory and time of Llama-2 on 1 to 8 GPUs, planned by pretrain.py: python3 -m benchmarks.plans

Writes docs/benchmarks/plans.md. Nothing is measured: it is the table of `--dry_run` for many machines.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from benchmarks.results import PROJECT_DIR, table
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.program import run_program
from pretraining.planning.fit import fits
from pretraining.planning.footprint import footprint
from pretraining.planning.suggestions import Suggestion, find_suggestions
from pretraining.planning.table import PlannedRun
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.dry_run import make_plan

RESULTS_PATH = PROJECT_DIR / "docs/benchmarks/plans.md"
RECIPES = ("llama2_7b", "llama2_13b", "llama2_70b")
GPU_TYPES = ("h100", "h200")
NUM_GPUS = (1, 2, 4, 8)
HOST_MEMORY = "2TB"

HEAD = f"""\
# What Llama-2 needs, as planned

Planned, not measured: `python3 -m benchmarks.plans` writes this from the plan that `pretrain.py --dry_run` prints,
for the recipes as they are (blocks of 4,096 tokens, one at a time, activation checkpointing, AdamW, bf16 with gradients
added up in fp32 where that fits) on machines with {HOST_MEMORY} of host memory. Memory is that of a data sheet, in GB
of 10^9 bytes. Hours are for 10^9 tokens at an assumed MFU of 40 % (full attention), with the change if there is one;
offloading is not estimated.

"""
COLUMNS = ("recipe", "GPUs", "GB per GPU", "fits", "hours for 10^9 tokens")

logger = logging.getLogger("pretraining.plans")


def main(_: Sequence[str]) -> None:
    """Plan all runs and write the table."""
    rows = [_cells(recipe, kind, number) for recipe in RECIPES for kind in GPU_TYPES for number in NUM_GPUS]
    RESULTS_PATH.write_text(HEAD + table(COLUMNS, rows) + "\n", encoding="utf-8")
    logger.info("wrote %s", RESULTS_PATH)


def _cells(recipe: str, kind: str, number: int) -> list[str]:
    words = f"--recipe recipes/{recipe}.yaml --dry_run --gpu_type {kind} --num_gpus {number}".split()
    arguments = parse_pretrain_arguments("", [*words, "--host_memory", HOST_MEMORY])
    run = make_plan(arguments, planned_machine(arguments.plan), None)
    needed = footprint(run.layout)
    memory = f"{number} x {(run.machine.gpu_bytes or 0) / 1e9:.0f} GB ({kind})"
    remedies = [] if fits(run.layout, run.machine) else find_suggestions(run.layout, run.machine, run.batch)
    return [recipe, memory, f"{needed.gpu_bytes / 1e9:.1f}", *_verdict(run, remedies)]


def _verdict(run: PlannedRun, remedies: list[Suggestion]) -> tuple[str, str]:
    """Whether a run fits, or the first change that makes it fit, with its memory; and the hours."""
    assert run.costs is not None, "the kinds are listed"
    if fits(run.layout, run.machine):
        return "yes" + (
            ", gradients in bf16" if run.layout.grad_accum_dtype == "bf16" else ""
        ), f"{run.costs.hours:.1f}"
    if not remedies:
        return "no", ""
    first = remedies[0]
    hours = "" if first.layout.offload_optimizer else f"{run.costs.gpu_hours / first.machine.num_processes:.1f}"
    return f"with `{' '.join(first.flags)}`: {first.needs}", hours


if __name__ == "__main__":
    run_program(main)
