"""What a run needs of a machine, whether it fits, and in which type its gradients are added up."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from pretraining.errors import UserError
from pretraining.planning.footprint import Footprint, footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.machine import MachineSpec
from pretraining.system.formatting import format_bytes

WORKS_ON_ANY_MACHINE = (
    "what works on this machine: make quickstart, or deepspeed --num_gpus=2 pretrain.py --recipe "
    "recipes/quickstart/pretrain.yaml"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradientType:
    """The type in which micro steps are added up, and why it is that one."""

    name: str
    reason: str


def fits(layout: TrainingLayout, machine: MachineSpec) -> bool:
    """Whether the machine has the memory, for what is assumed too."""
    return not problems(footprint(layout, has_gpu=machine.has_gpu), machine)


def problems(needed: Footprint, machine: MachineSpec) -> list[str]:
    """In which memory it does not fit, as words."""
    found = []
    if machine.gpu_bytes is not None and needed.gpu_bytes > machine.gpu_bytes:
        number, room = machine.num_processes, format_bytes(machine.gpu_bytes)
        where = f"the GPU, which has {room}" if number == 1 else f"each of {number} GPUs, which have {room}"
        found.append(f"{format_bytes(needed.gpu_bytes)} on {where}")
    if machine.host_bytes is not None and needed.host_bytes > machine.host_bytes:
        available = f"{format_bytes(machine.host_bytes)} available"
        where = f"of host memory, with {available}" if machine.has_gpu else f"of memory; no GPU is here and {available}"
        found.append(f"{format_bytes(needed.host_bytes)} {where}")
    return found


def choose_gradient_type(asked: str, layout: TrainingLayout, machine: MachineSpec) -> GradientType:
    """In which type micro steps are added up: as asked for, otherwise fp32 unless only half of it fits the GPUs.

    Raises:
        UserError: for bf16 sums of fp16 gradients.
    """
    if asked == "bf16" and layout.precision == "fp16":
        raise UserError("--grad_accum_dtype bf16 --fp16: gradients of fp16 are not added up in bf16; give fp32")
    if layout.precision == "fp32":
        return GradientType("fp32", "as the weights")
    if asked != "auto":
        return GradientType(asked, "as asked for")
    # By the GPU alone: host memory is another one at each start and on each rank, and the sums must not be.
    full, half = replace(layout, grad_accum_dtype="fp32"), replace(layout, grad_accum_dtype=layout.precision)
    room = replace(machine, host_bytes=None)
    if not machine.has_gpu or fits(full, room) or not fits(half, room):
        return GradientType("fp32", "sums in half precision lose small gradients")
    return GradientType(layout.precision, f"fp32 would not fit the {format_bytes(machine.gpu_bytes or 0)} of a GPU")


def resolved_settings(batch: GlobalBatch, precision: str, gradient_type: GradientType) -> dict[str, Any]:
    """What a DeepSpeed config may agree with, once machine, model and data are known, by its place there."""
    return {
        "train_batch_size": batch.blocks,
        "train_micro_batch_size_per_gpu": batch.micro_batch_blocks,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "bf16.enabled": precision == "bf16",
        "fp16.enabled": precision == "fp16",
        "data_types.grad_accum_dtype": gradient_type.name,
    }
