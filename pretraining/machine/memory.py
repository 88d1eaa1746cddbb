"""Bytes that weights, gradients and optimizer state take under ZeRO-3, where, and what the machine has.

Activations, buckets and transients come on top, so this says when a model cannot fit, not that it will.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEMORY_INFO = Path("/proc/meminfo")
CONTROL_GROUPS, OWN_CONTROL_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MASTER_BYTES = 4  # per parameter: the fp32 master weights
# What each optimizer keeps of the past, per parameter. 8 bits are two codes, and two fp32 scales for 256 of them
# (arXiv 2110.02861). Muon has one moment for the matrices of the layers; embeddings, head and norms, a small part of a
# large model, have AdamW's two.
MOMENT_BYTES = {"adamw": 8.0, "adamw_bf16": 4.0, "adamw_8bit": 2 + 8 / 256, "muon": 4.0}
GRADIENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # in which micro steps are added up
OFFLOADED_GRADIENT_BYTES = 4  # the offloaded optimizer's own fp32 copy of the gradients


@dataclass(frozen=True)
class ModelStateBytes:
    """What all ranks together keep on GPUs and in host memory."""

    gpu: int
    host: int


def model_state_bytes(
    num_parameters: int,
    *,
    half_precision: bool,
    optimizer: str,
    grad_accum_dtype: str,
    offload_optimizer: bool,
    offload_parameters: bool,
) -> ModelStateBytes:
    """Weights, accumulated gradients, master weights and moments.

    Without offload 18 bytes a parameter in bf16 and fp16, 16 with gradients in bf16 too, and 16 in fp32, where the
    weights are their own master copy.
    With the optimizer offloaded there is a second copy of the gradients, and of fp32 weights too: 22 and 24 in all, of
    which the GPU keeps the weights unless they are offloaded as well.
    (deepspeed 0.19.8, runtime/zero/stage3.py, and the tensors that it holds after a step.)
    """
    states = GRADIENT_BYTES[grad_accum_dtype] + MASTER_BYTES + MOMENT_BYTES[optimizer]
    if offload_optimizer:
        weights = 2 if half_precision else 4
        host = states + OFFLOADED_GRADIENT_BYTES + (weights if offload_parameters else 0)
        gpu = 0 if offload_parameters else weights
        return ModelStateBytes(gpu=int(num_parameters * gpu), host=int(num_parameters * host))
    weights = 2 if half_precision else 0
    host = weights if offload_parameters else 0
    return ModelStateBytes(gpu=int(num_parameters * (weights + states - host)), host=int(num_parameters * host))


def available_host_bytes() -> int:
    """Memory that new work can take without swapping (MemAvailable), and within the limits of container or job."""
    for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_bytes_within_limits()])
    raise RuntimeError(f"{MEMORY_INFO} has no MemAvailable line")


def _bytes_within_limits() -> Iterator[int]:
    """What each control group of this process may still take (cgroup v2, as containers and Slurm set them)."""
    with suppress(OSError):
        own = OWN_CONTROL_GROUP.read_text(encoding="ascii").rpartition("::")[2].strip().strip("/")
        for group in (CONTROL_GROUPS / own, *(CONTROL_GROUPS / own).parents):
            if group.is_relative_to(CONTROL_GROUPS) and (group / "memory.max").is_file():
                limit = (group / "memory.max").read_text(encoding="ascii").strip()
                if limit != "max":
                    used = int((group / "memory.current").read_text(encoding="ascii"))
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    yield max(0, int(limit) - used + int(stat["inactive_file"]))  # files are dropped first
