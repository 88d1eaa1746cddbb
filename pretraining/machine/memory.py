"""Bytes that weights, gradients and optimizer state take under ZeRO-3, where, and what the machine has.

Activations, buckets and transients come on top, so this says when a model cannot fit, not that it will.
"""

from dataclasses import dataclass
from pathlib import Path

MEMORY_INFO = Path("/proc/meminfo")
MASTER_AND_MOMENTS_BYTES = 12  # per parameter: fp32 master weights 4, Adam's two moments 8
ACCUMULATED_GRADIENT_BYTES = 4  # fp32, as ds_config.json asks


@dataclass(frozen=True)
class ModelStateBytes:
    """What all ranks together keep on GPUs and in host memory."""

    gpu: int
    host: int


def model_state_bytes(
    num_parameters: int, *, half_precision: bool, offload_optimizer: bool, offload_parameters: bool
) -> ModelStateBytes:
    """Weights, accumulated gradients, master weights and moments.

    In fp32 the weights are their own master copy: 16 bytes a parameter. In bf16 and fp16 two bytes of weights come on
    top: 18. With the optimizer offloaded the GPU keeps the weights only, with the parameters offloaded nothing of this.
    (deepspeed 0.19.8, runtime/zero/stage3.py.)
    """
    weights = 2 if half_precision else 0
    optimizer = ACCUMULATED_GRADIENT_BYTES + MASTER_AND_MOMENTS_BYTES
    on_host = (optimizer if offload_optimizer else 0) + (weights if offload_parameters else 0)
    return ModelStateBytes(
        gpu=num_parameters * (weights + optimizer - on_host),
        host=num_parameters * on_host,
    )


def available_host_bytes() -> int:
    """Memory that new work can take without swapping (MemAvailable)."""
    for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{MEMORY_INFO} has no MemAvailable line")
