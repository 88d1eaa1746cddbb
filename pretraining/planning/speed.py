"""Seconds of a step: arithmetic on published bandwidths and assumed shares of them, not fitted to what was measured."""

from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.cli.arguments.run import PlanArguments
from pretraining.planning.flops import flops_per_token
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import FP32_BYTES, HALF_TYPES, TrainingLayout
from pretraining.planning.model_states import model_states
from pretraining.planning.zero.flat_groups import keeps_sums_on_gpu
from pretraining.planning.zero.traffic import Sent, sent_per_step
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
    if layout.stage < 3:  # stage 2 copies sums in their own type in each micro step; else they stay on the GPU
        sums = 0 if keeps_sums_on_gpu(layout) else 2 * states.gradients
        return HostTraffic(sums, 0, states.gradient_copies + states.updated_weights)
    fetched = 2 * states.weights if layout.offload_parameters else 0
    updated = 0 if layout.offload_parameters else states.weights
    return HostTraffic(2 * states.gradients, fetched, states.gradient_copies + updated)


def recomputed_share(layout: TrainingLayout) -> float:
    """Layers that are computed again in backward, as a share of all."""
    if layout.checkpoint_every is None:
        return 0.0
    return len(range(0, layout.shape.num_hidden_layers, layout.checkpoint_every)) / layout.shape.num_hidden_layers


@dataclass(frozen=True)
class Speeds:
    """What is assumed: the share `hfu` of its peak at which a GPU computes, and the network of a machine."""

    hfu: float
    network_bytes_per_second: float

    @classmethod
    def of(cls, flags: PlanArguments) -> "Speeds":
        """Read --assumed_hfu and --assumed_network_gbits."""
        return cls(flags.assumed_hfu, flags.assumed_network_gbits * 1e9 / 8)


def tokens_per_second_per_gpu(
    layout: TrainingLayout, batch: GlobalBatch, gpu: GpuType | None, speeds: Speeds
) -> float | None:
    """Estimate the speed where a GPU computes at a share of its peak, recomputation included (PaLM, appendix B).

    What GPUs send each other hides behind the computation in stage 3, or the other way round; below it one follows the
    other. What is copied from and to host memory hides nowhere: the sums are copied in the stream that reduces the
    gradients. None for unlisted GPUs, and in fp32, which the peaks of the list are not of.
    """
    if gpu is None or layout.precision not in HALF_TYPES:
        return None
    return batch.tokens / layout.num_processes / sum(_step_seconds(layout, batch, gpu, speeds))


def sending_seconds(layout: TrainingLayout, sent: Sent, gpu: GpuType, speeds: Speeds) -> float:
    """Seconds of what a GPU sends, over its links or, if that is slower, over the network of its machine."""
    local = sent.total / link_bytes_per_second(gpu)
    has_network = layout.num_processes > layout.num_local_processes
    return max(local, sent.to_all / speeds.network_bytes_per_second) if has_network else local


def link_bytes_per_second(gpu: GpuType) -> float:
    """Bytes that a GPU sends to others of its machine: over NVLink, or else over PCI Express."""
    return NVLINK_SHARE * gpu.nvlink_gb_per_second * 1e9 or PCIE_SHARE * gpu.pcie_bytes_per_second


def _step_seconds(layout: TrainingLayout, batch: GlobalBatch, gpu: GpuType, speeds: Speeds) -> Iterator[float]:
    """Micro steps, copies over PCI Express, and the optimizer in host memory."""
    num_micro_steps = batch.gradient_accumulation_steps
    flops = layout.num_tokens * flops_per_token(layout.shape, block_length=layout.block_length)
    computing = flops * (1 + recomputed_share(layout) / 3) / (speeds.hfu * gpu.peak_flops_per_second) * num_micro_steps
    sending = sending_seconds(layout, sent_per_step(layout, num_micro_steps), gpu, speeds)
    yield max(computing, sending) if layout.stage == 3 else computing + sending
    yield host_traffic(layout).per_step(num_micro_steps) / (PCIE_SHARE * gpu.pcie_bytes_per_second)
    if layout.offload_optimizer:
        weights = model_states(layout).master_weights // FP32_BYTES * layout.num_local_processes
        yield HOST_STEP_BYTES * weights / HOST_BYTES_PER_SECOND
