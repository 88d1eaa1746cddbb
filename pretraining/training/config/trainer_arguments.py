"""The Trainer's arguments: its flags, and what follows from run folder, global batch and machine."""

import copy
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from pretraining.errors import UserError
from pretraining.planning.global_batch import GlobalBatch
from pretraining.system.host import bf16_instruction

# Flags by the names that they had before transformers 5.23, which warns of them.
EARLIER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
Precision = Literal["bf16", "fp16", "fp32"]
MATRIX_SIDE, NUM_ROUNDS = 256, 10  # 34 MFLOP: 0.4 ms of a core at 90 GFLOP/s, in fp32


def make_training_arguments(
    flags: dict[str, Any],
    *,
    run_dir: Path,
    ds_config: dict[str, Any],
    batch: GlobalBatch,
    num_steps: int,
    precision: Precision,
) -> TrainingArguments:
    """Build the Trainer's arguments.

    Raises:
        UserError: for a combination that the Trainer rejects.
    """
    derived = {
        "output_dir": str(run_dir),
        "deepspeed": copy.deepcopy(ds_config),  # the Trainer fills in what is "auto"
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "max_steps": num_steps,
        "per_device_eval_batch_size": flags["per_device_eval_batch_size"] or batch.micro_batch_blocks,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "remove_unused_columns": False,
        "ignore_data_skip": True,  # the loader starts at the block of the resume point
        "logging_nan_inf_filter": False,  # true hides NaN from the log, and synchronizes once per micro step
    }
    try:
        return TrainingArguments(**{**with_new_names(flags), **derived})
    except ValueError as error:
        raise UserError(f"Trainer flags: {' '.join(str(error).split())}") from None


def with_new_names(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags without the earlier names, whose values count where the new ones have none."""
    renamed = dict(flags)
    for earlier, name in EARLIER_NAMES.items():
        value = renamed.pop(earlier, None)
        renamed[name] = value if renamed.get(name) is None else renamed[name]
    return renamed


def choose_precision(
    flags: dict[str, Any], *, has_gpu: bool, has_bf16: bool | None = None, recorded: Precision | None = None
) -> Precision:
    """Choose the precision: as asked, else that of the run that is resumed (`recorded`), else what the hardware has.

    That is bf16 where the processor has instructions for it, and fp32 elsewhere: emulated bf16 is slow, on a Xeon with
    AVX-512 a process trained 597 tokens/s instead of 1,287 in fp32. `has_bf16`: whether the planned GPU has bf16, None
    for this machine's.
    """
    if flags.get("fp16"):
        if not has_gpu:
            raise UserError("--fp16: needs a GPU; remove it, this machine trains in fp32")
        return "fp16"
    if flags["bf16"] is not None:
        return "bf16" if flags["bf16"] else "fp32"
    if recorded is not None:
        return recorded
    return "bf16" if (has_fast_bf16(has_gpu=has_gpu) if has_bf16 is None else has_bf16) else "fp32"


def has_fast_bf16(*, has_gpu: bool) -> bool:
    """Whether this machine computes bf16 without emulation; torch's own check is true for emulation, too."""
    if has_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bf16_instruction() is not None


def bf16_product_time() -> float:
    """Measure how long this processor multiplies matrices in bf16, relative to fp32; takes about 20 ms.

    The precision follows from the instructions, not from this time: it differs between starts on a busy machine, and
    all processes of a run, and all its resumes, must train in one precision.
    """
    pairs = [(dtype, torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
    fastest = dict.fromkeys((torch.bfloat16, torch.float32), math.inf)
    for _ in range(NUM_ROUNDS):
        for dtype, matrix in pairs:
            started_at = time.perf_counter()
            torch.mm(matrix, matrix)
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - started_at)
    return fastest[torch.bfloat16] / fastest[torch.float32]
