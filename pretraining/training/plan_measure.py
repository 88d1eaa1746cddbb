"""--plan_measure: a few real steps, and what they took beside what was planned."""

import sys
from typing import Any

from pretraining.cli.errors import UserError, leave
from pretraining.cli.launchers import process_rank
from pretraining.cli.pretrain_arguments import PretrainArguments
from pretraining.corpus.store_source import Mixture
from pretraining.machine.flops import flops_per_token
from pretraining.machine.footprint import PROCESS_BYTES, footprint
from pretraining.machine.model_states import model_states
from pretraining.training.plan_only import plan_without_start
from pretraining.training.plan_table import PlannedRun
from pretraining.training.planned_machine import this_machine
from pretraining.training.trial import FITS, TrialPlace, TrialSize

NUM_STEPS = 5
MOST_MICRO_STEPS = 8  # of a step of the trial; a real one may have hundreds
NAMES = {
    "weights": "weights",
    "whole_weights": "small weights, kept whole",
    "gradients": "gradients",
    "gradient_copies": "copy of the gradients",
    "master_weights": "master weights",
    "moments": "optimizer moments",
}
SECONDS_PER_HOUR = 3600


def measure_plan(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Run the steps in child processes, say the table and end this process.

    Raises:
        UserError: when the steps do not fit, or fail.
    """
    plan = plan_without_start(arguments, this_machine(), mixture)
    batch = plan.batch
    size = TrialSize(batch.micro_batch_blocks, min(MOST_MICRO_STEPS, batch.gradient_accumulation_steps), NUM_STEPS)
    with TrialPlace() as place:
        outcome, results = place.run(size)
    if outcome != FITS:
        raise UserError(f"--plan_measure: {batch.micro_batch_blocks} blocks at a time: {outcome}; see --plan_only")
    if process_rank() == 0:
        sys.stdout.write(measured_table(plan, results, size))
    leave(0)


def measured_table(plan: PlannedRun, results: list[dict[str, Any]], size: TrialSize) -> str:
    """Planned beside measured, of the first process, whose weights are as many as any other's."""
    planned, measured = vars(model_states(plan.layout)), results[0]["states"]
    lines = [f"measured: {plan.model} on {plan.machine.name}, {size.num_steps} steps of "]
    lines[0] += f"{results[0]['tokens_per_step']:,} tokens"
    lines += ["", _row("bytes of one process", "planned", "measured")]
    lines += [_row(name, f"{planned[key]:,}", f"{measured[key]:,}") for key, name in NAMES.items()]
    lines += [_row("all of these", f"{sum(planned.values()):,}", f"{sum(measured.values()):,}")]
    lines += ["", *_peak_rows(plan, results), "", *_speed_rows(plan, results[0])]
    return "\n".join(lines) + "\n"


def _peak_rows(plan: PlannedRun, results: list[dict[str, Any]]) -> list[str]:
    needed, measured = footprint(plan.layout, has_gpu=plan.machine.has_gpu), [one["peak_bytes"] for one in results]
    if plan.machine.has_gpu:
        planned = sum(p.num_bytes for p in needed.on_gpu if needed.peak_moment in p.moments and "CUDA" not in p.name)
        return [_row("peak of a GPU's allocator, GB", f"{planned / 1e9:,.2f}", f"{max(measured) / 1e9:,.2f}")]
    return [
        _row("peak of all processes, GB", f"{needed.host_bytes / 1e9:,.2f}", f"{sum(measured) / 1e9:,.2f}"),
        f"  (planned with {PROCESS_BYTES / 1e9:g} GB for each process by itself)",
    ]


def _speed_rows(plan: PlannedRun, result: dict[str, Any]) -> list[str]:
    """For the whole run a little too slow: its steps may have more micro steps for each update."""
    costs = plan.costs
    measured_column = _speed_column(plan, result["tokens_per_second_per_gpu"])
    planned_column = ["not known"] * 4 if costs is None else _speed_column(plan, costs.tokens_per_second_per_gpu)
    names = ("tokens/s/GPU", "MFU", "seconds of a step", "hours of the run")
    return [
        _row(name, planned, measured)
        for name, planned, measured in zip(names, planned_column, measured_column, strict=True)
    ]


def _speed_column(plan: PlannedRun, rate: float) -> list[str]:
    """Tokens/s/GPU, and the MFU, seconds of a step and hours of the run that it gives."""
    batch, kind = plan.batch, plan.machine.gpu_type
    flops = flops_per_token(plan.layout.shape, block_length=batch.block_length)
    seconds = batch.tokens / (rate * batch.num_processes)
    hours = None if plan.num_steps is None else plan.num_steps * seconds / SECONDS_PER_HOUR
    return [
        f"{rate:,.0f}",
        "not known" if kind is None else f"{rate * flops / kind.peak_flops_per_second:.1%}",
        f"{seconds:,.3f}",
        "not known" if hours is None else f"{hours:,.2f}",
    ]


def _row(name: str, planned: str, measured: str) -> str:
    return f"  {name:<30}{planned:>20}{measured:>20}"
