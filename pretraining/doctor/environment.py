"""Environment variables that are known to do harm, and the text encoding."""

import locale
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if
from pretraining.system.cores import usable_cores
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import LOCAL_RANK_VARIABLES, RANK_VARIABLES, SIZE_VARIABLES
from pretraining.system.torch_environment import ALLOCATOR_VARIABLE, OLD_ALLOCATOR_VARIABLES, THREADS_VARIABLE

# What torch 2.13 reads in the variables of its allocator (c10/core/AllocatorConfig.h,
# c10/cuda/CUDAAllocatorConfig.h); it rejects others, and a smaller split, at the first allocation on a GPU.
ALLOCATOR_OPTIONS = (
    "backend expandable_segments garbage_collection_threshold graph_capture_record_stream_reuse large_segment_size_mb "
    "max_non_split_rounding_mb max_split_size_mb per_process_memory_fraction pinned_free_catch_all "
    "pinned_max_cached_size_mb pinned_max_round_threshold_mb pinned_num_register_threads "
    "pinned_reserve_segment_size_mb pinned_use_background_threads pinned_use_cuda_host_register "
    "pinned_use_hip_host_register release_lock_on_cudamalloc release_lock_on_hipmalloc roundup_power2_divisions "
    "throw_on_cudamalloc_oom"
)
MIN_SPLIT_MEGABYTES = 20
# Useful for debugging only; slow with the value named, or with any other than 0.
SLOW_DEBUG_VARIABLES = {
    "NCCL_P2P_DISABLE": ("", "GPUs exchange through host memory"),
    "NCCL_SHM_DISABLE": ("", "GPUs without direct links exchange through the network"),
    "CUDA_LAUNCH_BLOCKING": ("", "the host waits for each kernel"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": ("", "the driver allocates each tensor separately"),
    "TORCH_NCCL_BLOCKING_WAIT": ("", "the host waits for each exchange"),
    "CUDA_DEVICE_MAX_CONNECTIONS": ("1", "one queue: communication and computation do not overlap"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "the processes check each exchange first"),
}


def variables(_: Sequence[Path]) -> Iterator[Finding]:
    """A finding for each variable whose value does harm."""
    found = [*_slow_variables(), *_gpu_variables(), *_process_variables(), *_allocator()]
    yield from found or [ok("environment", "no variable is set that is known to do harm")]


def _slow_variables() -> Iterator[Finding]:
    for name, (slow, effect) in SLOW_DEBUG_VARIABLES.items():
        value = os.environ.get(name, "")
        if value.upper() == slow if slow else value not in ("", "0"):
            yield warning(name, f"is {value}: {effect}", f"unset {name}")


def _gpu_variables() -> Iterator[Finding]:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is not None and value.strip() in ("", "-1", "NoDevFiles"):
        yield warning("CUDA_VISIBLE_DEVICES", f"is {value!r}: hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    elif value is not None:
        fix = f"deepspeed --include localhost:{value} pretrain.py"
        yield warning("CUDA_VISIBLE_DEVICES", f"is {value}: `deepspeed --num_gpus` ignores it", fix)
    accelerator = os.environ.get("DS_ACCELERATOR")
    if accelerator not in (None, "cuda") and driver_gpu_names():
        figure = f"is {accelerator}, although there are NVIDIA GPUs"
        yield failure("DS_ACCELERATOR", figure, "unset DS_ACCELERATOR")


def _process_variables() -> Iterator[Finding]:
    left = [name for name in (*RANK_VARIABLES, *SIZE_VARIABLES, *LOCAL_RANK_VARIABLES) if os.environ.get(name)]
    if left:
        figure = "set without a launcher: a program would wait for processes that nobody starts"
        yield warning(", ".join(left), figure, f"unset {' '.join(left)}")
    value, num_cores = os.environ.get(THREADS_VARIABLE), usable_cores()
    if value is not None and (not value.isdigit() or int(value) > num_cores):
        yield warning(THREADS_VARIABLE, f"is {value} on {num_cores} cores", f"unset {THREADS_VARIABLE}")


def _allocator() -> Iterator[Finding]:
    for name in (*OLD_ALLOCATOR_VARIABLES, ALLOCATOR_VARIABLE):
        plain = re.sub(r"\[[^]]*]", "", os.environ.get(name, ""))  # without the lists of roundup_power2_divisions
        options = [option.partition(":") for option in plain.split(",") if option.strip()]
        values = {key.strip(): value.strip() for key, _, value in options}
        split, unknown = values.get("max_split_size_mb"), sorted(values.keys() - ALLOCATOR_OPTIONS.split())
        if unknown:
            yield failure(name, f"has options that torch rejects: {', '.join(unknown)}", f"unset {name}")
        elif split is not None and (not split.isdigit() or int(split) < MIN_SPLIT_MEGABYTES):
            figure = f"max_split_size_mb is {split}; torch rejects less than {MIN_SPLIT_MEGABYTES}"
            yield failure(name, figure, f"unset {name}")
    for name in OLD_ALLOCATOR_VARIABLES:
        if os.environ.get(name) and os.environ.get(ALLOCATOR_VARIABLE):
            yield warning(name, f"is set, and so is {ALLOCATOR_VARIABLE}, its new name", f"unset {name}")


def encoding(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether text is UTF-8, in files and in their names."""
    terminal = os.environ.get("PYTHONIOENCODING") or sys.__stdout__.encoding  # type: ignore[union-attr]
    found = {
        "files": locale.getpreferredencoding(False),
        "names": sys.getfilesystemencoding(),
        "terminal": terminal.partition(":")[0],
    }
    other = {what: name for what, name in found.items() if name.lower().replace("-", "").replace("_", "") != "utf8"}
    named = ", ".join(f"{what} in {name}" for what, name in other.items())
    figure = f"{named} instead of UTF-8" if other else "UTF-8"
    yield warning_if(bool(other), "encoding", figure, "export PYTHONUTF8=1 && unset PYTHONIOENCODING", **found)
