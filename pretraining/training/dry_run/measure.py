"""--profile_plan: a few real steps, and what they took beside what was planned."""

import sys
from typing import Any

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.program import exit_process
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.planning.cost import Costs
from pretraining.planning.footprint import PROCESS_BYTES, footprint
from pretraining.planning.model_states import model_states
from pretraining.planning.table import PlannedRun
from pretraining.system.launchers import process_rank
from pretraining.training.config.machine import this_machine
from pretraining.training.dry_run.dry_run import plan_without_start
from pretraining.training.dry_run.trial import FITS, TrialRendezvous, TrialSize

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
NOT_KNOWN = "not known"


def measure_plan(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Run the steps in child processes, say the table and end this process.

    Raises:
        UserError: when the steps do not fit, or fail.
    """
    plan = plan_without_start(arguments, this_machine(), mixture)
    batch = plan.batch
    size = TrialSize(batch.micro_batch_blocks, min(MOST_MICRO_STEPS, batch.gradient_accumulation_steps), NUM_STEPS)
    with TrialRendezvous() as place:
        outcome, results = place.run(size)
    if outcome != FITS:
        raise UserError(f"--profile_plan: {batch.micro_batch_blocks} blocks at a time: {outcome}; see --dry_run")
    if process_rank() == 0:
        sys.stdout.write(measured_table(plan, results, size))
    exit_process(0)


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
    rate = result["tokens_per_second_per_gpu"]
    measured = _speed_column(plan, rate) | _cost_column(plan, None if plan.costs is None else plan.costs.at_speed(rate))
    planned = _cost_column(plan, plan.costs)
    if plan.costs is not None:
        planned |= _speed_column(plan, plan.costs.tokens_per_second_per_gpu)
    return [_row(name, planned.get(name, NOT_KNOWN), value) for name, value in measured.items()]


def _speed_column(plan: PlannedRun, rate: float) -> dict[str, str]:
    """Tokens/s/GPU, and the seconds of a step and hours of the run that it gives."""
    seconds = plan.batch.tokens / (rate * plan.batch.num_processes)
    hours = None if plan.num_steps is None else plan.num_steps * seconds / SECONDS_PER_HOUR
    return {
        "tokens/s/GPU": f"{rate:,.0f}",
        "seconds of a step": f"{seconds:,.3f}",
        "hours of the run": NOT_KNOWN if hours is None else f"{hours:,.2f}",
    }


def _cost_column(plan: PlannedRun, costs: Costs | None) -> dict[str, str]:
    """What is known of a listed GPU alone; energy and price are of the run as a whole."""
    if costs is None:
        return {"MFU": NOT_KNOWN, "energy of the GPUs, at most": NOT_KNOWN}
    found = {"MFU": f"{costs.mfu:.1%}", "energy of the GPUs, at most": NOT_KNOWN}
    if plan.num_steps is not None:
        found["energy of the GPUs, at most"] = f"{costs.kilowatt_hours:,.1f} kWh"
        if costs.price is not None:
            found["price"] = f"{costs.price:,.2f}"
    return found


def _row(name: str, planned: str, measured: str) -> str:
    return f"  {name:<30}{planned:>20}{measured:>20}"
