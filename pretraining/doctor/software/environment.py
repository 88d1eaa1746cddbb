"""Environment variables that are known to hurt, and the text encoding."""

import locale
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.doctor.gpu.nvml import driver_gpus
from pretraining.system.cores import usable_cores
from pretraining.system.launchers import LOCAL_RANK_VARIABLES, RANK_VARIABLES, SIZE_VARIABLES

# What torch 2.13 reads in PYTORCH_ALLOC_CONF (c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h); it refuses
# others at the first allocation on a GPU.
ALLOCATOR_OPTIONS = {
    "backend", "expandable_segments", "garbage_collection_threshold", "graph_capture_record_stream_reuse",
    "large_segment_size_mb", "max_non_split_rounding_mb", "max_split_size_mb", "per_process_memory_fraction",
    "pinned_free_catch_all", "pinned_max_cached_size_mb", "pinned_max_round_threshold_mb",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb", "pinned_use_background_threads", "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register", "release_lock_on_cudamalloc", "release_lock_on_hipmalloc",
    "roundup_power2_divisions", "throw_on_cudamalloc_oom",
}  # fmt: skip
LEAST_SPLIT_MEGABYTES = 20
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# Slower, for looking at faults only.
SLOWING = {
    "NCCL_P2P_DISABLE": "GPUs exchange through host memory",
    "NCCL_SHM_DISABLE": "GPUs without direct links exchange through the network",
    "CUDA_LAUNCH_BLOCKING": "the host waits for each kernel",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "each tensor is allocated anew by the driver",
    "TORCH_NCCL_BLOCKING_WAIT": "the host waits for each exchange",
    "CUDA_DEVICE_MAX_CONNECTIONS": "one queue: exchange and arithmetic do not overlap",
}


def variables(_: Sequence[Path]) -> Iterator[Finding]:
    """A finding for each that is set so that it hurts."""
    found = [finding for look in LOOKS for finding in look()]
    yield from found
    if not found:
        yield ok("environment", "no variable is set that is known to hurt")


def _slowing() -> Iterator[Finding]:
    for name, effect in SLOWING.items():
        value = os.environ.get(name)
        hurts = value == "1" if name == "CUDA_DEVICE_MAX_CONNECTIONS" else value not in (None, "", "0")
        if hurts:
            yield warning(name, f"is {value}: {effect}", f"unset {name}")
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        figure = "is DETAIL: each exchange is checked between the processes first"
        yield warning("TORCH_DISTRIBUTED_DEBUG", figure, "unset TORCH_DISTRIBUTED_DEBUG")


def _visible_gpus() -> Iterator[Finding]:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is not None and value.strip() in ("", "-1", "NoDevFiles"):
        yield warning("CUDA_VISIBLE_DEVICES", f"is {value!r}: hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    elif value is not None:
        fix = f"deepspeed --include localhost:{value} pretrain.py"
        yield warning("CUDA_VISIBLE_DEVICES", f"is {value}: `deepspeed --num_gpus` takes no notice of it", fix)
    accelerator = os.environ.get("DS_ACCELERATOR")
    if accelerator not in (None, "cuda") and driver_gpus():
        figure = f"is {accelerator}, although there are NVIDIA GPUs"
        yield failure("DS_ACCELERATOR", figure, "unset DS_ACCELERATOR")


def _launcher_words() -> Iterator[Finding]:
    left = [name for name in (*RANK_VARIABLES, *SIZE_VARIABLES, *LOCAL_RANK_VARIABLES) if os.environ.get(name)]
    if left:
        figure = "set without a launcher: a program would wait for processes that nobody starts"
        yield warning(", ".join(left), figure, f"unset {' '.join(left)}")


def _threads() -> Iterator[Finding]:
    value, num_cores = os.environ.get("OMP_NUM_THREADS"), usable_cores()
    if value is None:
        return
    if not value.isdigit() or int(value) > num_cores:
        yield warning("OMP_NUM_THREADS", f"is {value} on {num_cores} cores", "unset OMP_NUM_THREADS")


def _allocator() -> Iterator[Finding]:
    for name in ALLOCATOR_VARIABLES:
        options = [word for word in os.environ.get(name, "").split(",") if word.strip()]
        pairs = {option.partition(":")[0].strip(): option.partition(":")[2].strip() for option in options}
        unknown = sorted(set(pairs) - ALLOCATOR_OPTIONS)
        split = pairs.get("max_split_size_mb")
        if unknown:
            yield failure(name, f"has unknown options: {', '.join(unknown)}", f"unset {name}")
        elif split is not None and (not split.isdigit() or int(split) < LEAST_SPLIT_MEGABYTES):
            yield failure(name, f"max_split_size_mb is {split}; 20 is the least that torch takes", f"unset {name}")
    if all(os.environ.get(name) for name in ALLOCATOR_VARIABLES):
        figure = "is set beside PYTORCH_ALLOC_CONF, its new name"
        yield warning(ALLOCATOR_VARIABLES[0], figure, f"unset {ALLOCATOR_VARIABLES[0]}")


def _library_path() -> Iterator[Finding]:
    """Libraries that would be loaded in place of those that torch brings."""
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        found = [
            path.name for name in ("libnccl.so*", "libcudnn.so*", "libcublas.so*") for path in Path(folder).glob(name)
        ]
        if found:
            figure = f"{folder} has {found[0]}, which is loaded in place of torch's own"
            yield warning("LD_LIBRARY_PATH", figure, "unset LD_LIBRARY_PATH")


LOOKS: list[Callable[[], Iterator[Finding]]] = [
    _slowing, _visible_gpus, _launcher_words, _threads, _allocator, _library_path,
]  # fmt: skip


def encoding(_: Sequence[Path]) -> Iterator[Finding]:
    """Text must be UTF-8, in files and in their names."""
    found = {"files": locale.getpreferredencoding(False), "names": sys.getfilesystemencoding()}
    found["terminal"] = (os.environ.get("PYTHONIOENCODING") or sys.__stdout__.encoding).partition(":")[0]  # type: ignore[union-attr]
    other = {what: name for what, name in found.items() if name.lower().replace("-", "").replace("_", "") != "utf8"}
    if other:
        figure = ", ".join(f"{what} in {name}" for what, name in other.items())
        yield warning(
            "encoding", f"{figure} instead of UTF-8", "export PYTHONUTF8=1 && unset PYTHONIOENCODING", **found
        )
    else:
        yield ok("encoding", "UTF-8", **found)
