"""--profile_plan: a run of a few steps, whose measurements are printed beside the plan."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from transformers import TrainerCallback

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.planning.cost import Costs
from pretraining.planning.footprint import PROCESS_BYTES
from pretraining.planning.model_states import model_states
from pretraining.planning.table import PlannedRun
from pretraining.runs.history import read_records
from pretraining.system.launchers import (
    has_launcher,
    launcher_identity,
    num_local_processes,
    num_processes,
)
from pretraining.system.processes import ProcessHandle
from pretraining.training.config.early_checks import run_folder
from pretraining.training.config.layout import this_machine
from pretraining.training.distributed.deepspeed_states import allocated_states
from pretraining.training.dry_run.plan import make_plan
from pretraining.training.dry_run.temporary_run import FOLDER_MARK
from pretraining.training.trainer.trainer import PretrainingTrainer

NUM_STEPS = 5
WARM_UP_STEPS = 2  # they allocate memory and fill caches
MAX_MICRO_STEPS = 8  # of a measured step; a real one may have hundreds
NAMES = {
    "weights": "weights",
    "whole_weights": "small weights, kept whole",
    "second_copy": "second copy (hpZ)",
    "gradients": "gradients",
    "gradient_copies": "copy of the gradients",
    "master_weights": "master weights",
    "moments": "optimizer moments",
    "updated_weights": "offloaded weights of a step",
}
NOT_KNOWN = "not known"
# Nothing but steps takes time or memory.
TRAINER_FLAGS = {
    "warmup_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "report_to": [],
    "push_to_hub": False,
}


def profile_arguments(arguments: PretrainArguments, mixture: Mixture) -> PretrainArguments:
    """With --profile_plan, shorten the run to a few steps, in a folder beside its own; see `temporary_folder`.

    Raises:
        UserError: when the processes are on several machines, or the run cannot be planned.
    """
    if not arguments.plan.profile_plan:
        return arguments
    if num_local_processes() != num_processes():
        raise UserError("--profile_plan: cannot measure on several machines; run it on one")
    batch, max_steps = make_plan(arguments, this_machine(), mixture).batch, arguments.trainer.get("max_steps", -1)
    run_dir = run_folder(arguments).resolve()  # which has a name, also for --output_dir .
    identity = launcher_identity() if has_launcher() else str(ProcessHandle.of(os.getpid()))
    trainer = {
        **arguments.trainer,
        **TRAINER_FLAGS,
        "gradient_accumulation_steps": min(MAX_MICRO_STEPS, batch.gradient_accumulation_steps),
        "max_steps": min(NUM_STEPS, max_steps) if max_steps > 0 else NUM_STEPS,
        "output_dir": str(run_dir.with_name(f"{run_dir.name}{FOLDER_MARK}{identity}")),
    }
    # A few steps are too short for several phases.
    first_phase = [PhaseArguments(phase.name, phase.dataset) for phase in arguments.data.phases[:1]]
    data = replace(
        arguments.data, global_batch_tokens=None, global_batch_blocks=None, max_tokens=None, phases=first_phase
    )
    durability = replace(arguments.durability, resume="never", max_hours=None, export=False, export_every_tokens=None)
    return replace(
        arguments,
        data=data,
        optimization=replace(arguments.optimization, lr_scheduler_type="constant", schedule_steps=None),
        durability=durability,
        observability=replace(arguments.observability, report=False, sample_steps=None, profile=None),
        plan=replace(arguments.plan, force=True),
        trainer=trainer,
    )


class AllocatedStates(TrainerCallback):
    """Measures the states after a micro step, where gradients are summed; of steps of one micro step, after a step."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._measured: dict[str, int] | None = None

    def on_substep_end(self, *_: Any, **_objects: Any) -> None:
        """Measure; only the last time counts, when the moments are there."""
        self._measured = allocated_states(self._trainer.model_wrapped)

    @property
    def measured(self) -> dict[str, int]:
        """Bytes by the names of `ModelStates`."""
        return self._measured or allocated_states(self._trainer.model_wrapped)


def print_profile(trainer: PretrainingTrainer, arguments: PretrainArguments, mixture: Mixture) -> None:
    """Write planned and measured values to stdout; `arguments` are those of the planned run."""
    if not trainer.is_world_process_zero():
        return
    run_dir = Path(trainer.args.output_dir)
    records = [record for record in read_records(run_dir) if "loss" in record and "event" not in record]
    plan = make_plan(arguments, this_machine(), mixture)
    states = trainer.pop_callback(AllocatedStates)
    sys.stdout.write(profile_table(plan, states.measured, records))
    sys.stdout.flush()


def profile_table(plan: PlannedRun, states: dict[str, int], records: Sequence[dict[str, Any]]) -> str:
    """Planned beside measured: `states` in bytes of one process, and the training records of the run."""
    planned = vars(model_states(plan.layout))
    tokens = records[0]["tokens"] // records[0]["step"]
    lines = [f"measured: {plan.model} on {plan.machine.name}, {len(records)} steps of {tokens:,} tokens"]
    lines += ["", _row("bytes of one process", "planned", "measured")]
    lines += [_row(name, f"{planned[key]:,}", f"{states[key]:,}") for key, name in NAMES.items()]
    lines += [_row("all of these", f"{sum(planned.values()):,}", f"{sum(states.values()):,}")]
    lines += ["", *_peak_rows(plan, records[-1]), "", *_speed_rows(plan, records)]
    return "\n".join(lines) + "\n"


def _peak_rows(plan: PlannedRun, last: dict[str, Any]) -> list[str]:
    if plan.machine.has_gpu:
        planned, measured = plan.footprint.counted.gpu_bytes, last["peak_memory_bytes"]
        return [_row("allocated at most per GPU, GB", f"{planned / 1e9:,.2f}", f"{measured / 1e9:,.2f}")]
    planned, measured = plan.footprint.host_bytes, last["peak_host_memory_bytes"]
    return [
        _row("peak of all processes, GB", f"{planned / 1e9:,.2f}", f"{measured / 1e9:,.2f}"),
        f"  (planned with {PROCESS_BYTES / 1e9:g} GB per process for Python and its libraries)",
    ]


def _speed_rows(plan: PlannedRun, records: Sequence[dict[str, Any]]) -> list[str]:
    """The whole run is a little faster than estimated here where its steps have more micro steps per update."""
    rates = [record["tokens_per_second_per_gpu"] for record in records]
    rate = harmonic_mean(rates[WARM_UP_STEPS:] or rates)
    costs = None if plan.costs is None else replace(plan.costs, tokens_per_second_per_gpu=rate)
    measured = _speed_column(plan, rate) | _cost_column(plan, costs)
    planned = _cost_column(plan, plan.costs)
    if plan.costs is not None:
        planned |= _speed_column(plan, plan.costs.tokens_per_second_per_gpu)
    return [_row(name, planned.get(name, NOT_KNOWN), value) for name, value in measured.items()]


def _speed_column(plan: PlannedRun, rate: float) -> dict[str, str]:
    """Tokens/s/GPU, and the seconds per step and hours of the run at this rate."""
    seconds = plan.batch.tokens / (rate * plan.batch.num_processes)
    hours = None if plan.num_steps is None else plan.num_steps * seconds / 3600
    return {
        "tokens/s/GPU": f"{rate:,.0f}",
        "seconds per step": f"{seconds:,.3f}",
        "hours of the run": NOT_KNOWN if hours is None else f"{hours:,.2f}",
    }


def _cost_column(plan: PlannedRun, costs: Costs | None) -> dict[str, str]:
    """MFU, known for listed GPUs alone; energy and price of the whole run."""
    found = {"MFU": NOT_KNOWN if costs is None else f"{costs.mfu:.1%}", "energy of the GPUs, at most": NOT_KNOWN}
    if costs is not None and plan.num_steps is not None:
        found["energy of the GPUs, at most"] = f"{costs.kilowatt_hours:,.1f} kWh"
        if costs.price is not None:
            found["price"] = f"{costs.price:,.2f}"
    return found


def _row(name: str, planned: str, measured: str) -> str:
    return f"  {name:<30}{planned:>20}{measured:>20}"
