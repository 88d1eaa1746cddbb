"""Whether a run fits a machine, and in which type its gradients are accumulated."""

from dataclasses import dataclass, replace
from typing import Any

from pretraining.errors import UserError
from pretraining.planning.footprint import Footprint, footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import MachineSpec, TrainingLayout
from pretraining.system.formatting import format_bytes


@dataclass(frozen=True)
class GradientType:
    """The type in which gradients are accumulated over micro steps, and the reason for it."""

    name: str
    reason: str


def fits(layout: TrainingLayout, machine: MachineSpec) -> bool:
    """Whether the machine has the memory, what is assumed included."""
    return not problems(footprint(layout, has_gpu=machine.has_gpu), machine)


def problems(needed: Footprint, machine: MachineSpec) -> list[str]:
    """Describe each kind of memory that is too small."""
    found = []
    if machine.has_gpu and needed.gpu_bytes > machine.usable_gpu_bytes:
        number, usable = machine.num_processes, f"{format_bytes(machine.usable_gpu_bytes)} for a run"
        where = f"the GPU, which has {usable}" if number == 1 else f"each of {number} GPUs, which have {usable}"
        found.append(f"{format_bytes(needed.gpu_bytes)} on {where}")
    if machine.host_bytes is not None and needed.host_bytes > machine.host_bytes:
        available = f"{format_bytes(machine.host_bytes)} available"
        where = f"of host memory, with {available}" if machine.has_gpu else f"of memory; no GPU is here and {available}"
        found.append(f"{format_bytes(needed.host_bytes)} {where}")
    return found


def certainly_fails(needed: Footprint, machine: MachineSpec) -> bool:
    """Whether what is counted exceeds all of the memory; what is assumed, and the margin, reject nothing."""
    counted = needed.counted
    exceeds_gpu = machine.gpu_bytes is not None and counted.gpu_bytes > machine.gpu_bytes
    return exceeds_gpu or (machine.host_bytes is not None and counted.host_bytes > machine.host_bytes)


def choose_gradient_type(asked: str, layout: TrainingLayout, machine: MachineSpec) -> GradientType:
    """Choose the type of gradient accumulation: as asked, else fp32.

    Half precision is chosen if only that fits the GPUs, and for an offloaded optimizer, whose sums are copied to the
    GPU and back in every micro step: 54 GB in fp32 for a Llama-2-7B, 1.1 s at 50 GB/s.

    Raises:
        UserError: for bf16 sums of fp16 gradients.
    """
    if asked == "bf16" and layout.precision == "fp16":
        raise UserError("--grad_accum_dtype bf16 --fp16: fp16 gradients cannot be accumulated in bf16; use fp32")
    if layout.precision == "fp32":
        return GradientType("fp32", "as the weights")
    if asked != "auto":
        return GradientType(asked, "as asked for")
    copies_sums = layout.offload_optimizer and layout.stage == 3  # below it fp32 sums stay on the GPU
    if machine.has_gpu and copies_sums and layout.precision == "bf16":
        return GradientType("bf16", "fp32 would double what offloading copies in every micro step")
    # By the GPU alone: free host memory differs between starts and ranks, and the sums must not.
    full, half = replace(layout, grad_accum_dtype="fp32"), replace(layout, grad_accum_dtype=layout.precision)
    gpu_only = replace(machine, host_bytes=None)
    if not machine.has_gpu or fits(full, gpu_only) or not fits(half, gpu_only):
        return GradientType("fp32", "sums in half precision lose small gradients")
    return GradientType(layout.precision, f"fp32 would not fit the {format_bytes(machine.usable_gpu_bytes)} of a GPU")


def resolved_settings(batch: GlobalBatch, precision: str, gradient_type: GradientType) -> dict[str, Any]:
    """Settings of a DeepSpeed config that follow from machine, model and data, by their path in it."""
    return {
        "train_batch_size": batch.blocks,
        "train_micro_batch_size_per_gpu": batch.micro_batch_blocks,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "bf16.enabled": precision == "bf16",
        "fp16.enabled": precision == "fp16",
        "data_types.grad_accum_dtype": gradient_type.name,
    }
