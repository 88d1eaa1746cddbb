"""Seconds of a step: arithmetic on published bandwidths and assumed shares of them, none of it measured."""

from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.planning.flops import flops_per_token, num_parameters
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import FP32_BYTES, TrainingLayout
from pretraining.planning.model_states import model_states
from pretraining.system.gpus import GpuType

# Assumed shares of the bandwidth that a data sheet gives.
PCIE_SHARE = 0.79
NVLINK_SHARE = 0.73
# Per weight of an offloaded optimizer: AdamW reads weight, gradient and two moments and writes all but the gradient;
# clipping reads and writes the gradient; the cast to bf16 reads 4 bytes and writes 2.
HOST_STEP_BYTES = 28 + 8 + 6
HOST_BYTES_PER_SECOND = 100e9  # assumed, of one machine: eight channels of DDR4-3200 have 205e9


@dataclass(frozen=True)
class HostTraffic:
    """Bytes between one GPU and host memory when the optimizer is offloaded, both directions added."""

    sums: int  # per micro step
    weights: int  # per micro step, of offloaded weights
    step: int  # once per optimizer step

    def per_step(self, num_micro_steps: int) -> int:
        """Bytes of one optimizer step."""
        return num_micro_steps * (self.sums + self.weights) + self.step


def host_traffic(layout: TrainingLayout) -> HostTraffic:
    """Count what DeepSpeed 0.19.8 copies (runtime/zero/stage3.py).

    In every micro step `partition_grads` copies the sums to the GPU and back: in the first to the host and back, for
    `_offload_grad_partition_at_boundary`. The latter sends the gradients to the host once more per step, in fp32.
    Updated weights come back to the GPU; offloaded ones are fetched for forward and for backward instead.
    """
    if not layout.offload_optimizer:
        return HostTraffic(0, 0, 0)
    states = model_states(layout)
    fetched = 2 * states.weights if layout.offload_parameters else 0
    updated = 0 if layout.offload_parameters else states.weights
    return HostTraffic(2 * states.gradients, fetched, states.gradient_copies + updated)


def sent_bytes(layout: TrainingLayout) -> float:
    """Bytes that each GPU sends per micro step: weights are gathered for forward and backward, gradients reduced."""
    others = (layout.num_processes - 1) / layout.num_processes
    return 3 * num_parameters(layout.shape) * layout.weight_bytes * others


def recomputed_share(layout: TrainingLayout) -> float:
    """Layers that are computed again in backward, as a share of all."""
    if layout.checkpoint_every is None:
        return 0.0
    return len(range(0, layout.shape.num_hidden_layers, layout.checkpoint_every)) / layout.shape.num_hidden_layers


def tokens_per_second_per_gpu(layout: TrainingLayout, batch: GlobalBatch, gpu: GpuType, *, hfu: float) -> float:
    """Estimate the speed where a GPU computes at a share `hfu` of its peak, recomputation included (PaLM, appendix B).

    What GPUs send each other hides behind the computation, or the other way round. What is copied from and to host
    memory does not: the sums are copied in the stream that reduces the gradients. A network between machines is not
    counted.
    """
    seconds = sum(_step_seconds(layout, batch, gpu, hfu=hfu))
    return batch.tokens / layout.num_processes / seconds


def _step_seconds(layout: TrainingLayout, batch: GlobalBatch, gpu: GpuType, *, hfu: float) -> Iterator[float]:
    """Micro steps, copies over PCI Express, and the optimizer in host memory."""
    flops = layout.num_tokens * flops_per_token(layout.shape, block_length=layout.block_length)
    computing = flops * (1 + recomputed_share(layout) / 3) / (hfu * gpu.peak_flops_per_second)
    pcie = PCIE_SHARE * gpu.pcie_bytes_per_second
    link = NVLINK_SHARE * gpu.nvlink_gb_per_second * 1e9 or pcie
    yield batch.gradient_accumulation_steps * max(computing, sent_bytes(layout) / link)
    yield host_traffic(layout).per_step(batch.gradient_accumulation_steps) / pcie
    if layout.offload_optimizer:
        weights = model_states(layout).master_weights // FP32_BYTES * layout.num_local_processes
        yield HOST_STEP_BYTES * weights / HOST_BYTES_PER_SECOND
