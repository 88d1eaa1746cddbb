"""All bytes of a run on one GPU and in host memory, part by part, and the phase of a step with the peak.

What DeepSpeed and torch allocate is counted from their code; what the driver, communication and fragmentation take is
assumed, in the constants below.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from pretraining.planning.activations import activations, evaluation_bytes
from pretraining.planning.flops import layer_parameters, num_parameters
from pretraining.planning.layout import CONTEXT_BYTES, FP32_BYTES, HALF_TYPES, MAX_MESSAGES_IN_FLIGHT, TrainingLayout
from pretraining.planning.model_states import largest_parameter, model_states, sub_groups
from pretraining.planning.zero.flat_groups import (
    flattening_bytes,
    flattens_on_host,
    has_flat_sums,
    keeps_sums_on_gpu,
    message_bytes,
    reduced_bytes,
)

PHASES = ("loss", "layer backward", "optimizer step", "evaluation")
START = "start"  # before there are gradients and an optimizer
ALWAYS = (*PHASES, START)
FP64_BYTES = 8
NORM_CHUNK = 250_000_000  # weights of an offloaded gradient whose norm is computed at a time (stage3.py)
# Weights that --optim adamw_bf16 updates at a time, of which it has both moments in fp32.
ADAMW_CHUNK = 1 << 25  # on a CPU: 256 MB whatever the size of a partition
FUSED_ADAMW_CHUNK = 1 << 23  # on a GPU: 64 MB, of which its cache (50 MB on H100) holds most; 800 chunks for 7B
MUON_COPIES = 6  # of the largest matrix in bf16: whole, sent, received, and three of Newton-Schulz iteration
# Assumed, of several GPUs: DeepSpeed clones the group of all processes (utils/groups.py), so NCCL has two communicators
# of up to 32 channels, each with buffers of 4 MiB and those of two small protocols for either neighbor.
NCCL_BYTES = 1_000_000_000
FRAGMENTATION = 0.03  # assumed, of the allocator's memory
PROCESS_BYTES = 1_000_000_000  # assumed, of a process in host memory: 0.5 GB of libraries, and their allocations
CUDA_PROCESS_BYTES = 3_000_000_000  # the same with CUDA's libraries and pinned buffers: 2.5 to 4 GB


@dataclass(frozen=True)
class Part:
    """Bytes of one kind, allocated in all phases of a step or in some, or when the run starts."""

    name: str
    num_bytes: int
    phases: tuple[str, ...] = PHASES
    is_assumed: bool = False


@dataclass(frozen=True)
class Footprint:
    """The parts on one GPU, and those in the host memory of one machine, which its processes share."""

    on_gpu: tuple[Part, ...]
    on_host: tuple[Part, ...]

    @property
    def counted(self) -> "Footprint":
        """The same without what is assumed, which may turn out to be less."""
        parts = ([part for part in found if not part.is_assumed] for found in (self.on_gpu, self.on_host))
        return Footprint(*map(tuple, parts))

    @property
    def peak_phase(self) -> str:
        """The phase in which a GPU holds most."""
        return max(ALWAYS, key=partial(_bytes_in, self.on_gpu))

    @property
    def gpu_bytes(self) -> int:
        """Peak bytes on a GPU."""
        return _bytes_in(self.on_gpu, self.peak_phase)

    @property
    def host_bytes(self) -> int:
        """Peak bytes in host memory; some of it only while the run starts or is saved."""
        return max(_bytes_in(self.on_host, phase) for phase in ALWAYS)


def footprint(layout: TrainingLayout, *, has_gpu: bool = True) -> Footprint:
    """Count the parts of a run on GPUs, or, without GPUs, in host memory alone."""
    on_gpu = [part for part in _gpu_parts(layout, has_gpu=has_gpu) if part.num_bytes]
    processes = (CUDA_PROCESS_BYTES if has_gpu else PROCESS_BYTES) * layout.num_local_processes
    on_host = [Part("processes (assumed)", processes, ALWAYS, is_assumed=True)]
    on_host += [part for part in _host_parts(layout) if part.num_bytes]
    counted = Footprint(tuple(on_gpu), ())
    if has_gpu:
        ahead = _launched_ahead(layout) * layout.weight_bytes
        on_gpu.append(Part("layers ahead of GPU (assumed)", ahead, PHASES[1:2], is_assumed=True))
        context = CONTEXT_BYTES + (NCCL_BYTES if layout.num_processes > 1 else 0)
        on_gpu.append(Part("CUDA context, NCCL (assumed)", context, ALWAYS, is_assumed=True))
        fragmentation = int(FRAGMENTATION * counted.gpu_bytes)
        on_gpu.append(Part("fragmentation (assumed)", fragmentation, ALWAYS, is_assumed=True))
        on_host.append(Part("weights, at start and export", num_parameters(layout.shape) * layout.weight_bytes))
        return Footprint(tuple(part for part in on_gpu if part.num_bytes), tuple(on_host))
    at_peak = [part for part in on_gpu if counted.peak_phase in part.phases]
    shared = [Part(part.name, part.num_bytes * layout.num_local_processes) for part in at_peak]
    return Footprint((), tuple(shared + on_host))


def _bytes_in(parts: Iterable[Part], phase: str) -> int:
    return sum(part.num_bytes for part in parts if phase in part.phases)


def _gpu_parts(layout: TrainingLayout, *, has_gpu: bool) -> Iterator[Part]:
    """Everything but what is assumed."""
    states = model_states(layout)
    loss, layer, step, evaluation = PHASES
    if not layout.offload_parameters:
        yield Part("weights", states.weights, ALWAYS)
    if layout.stage < 3 and not flattens_on_host(layout):
        yield Part("weights, before they are flat", flattening_bytes(layout) - states.weights, (START,))
    yield Part("small weights, kept whole", states.whole_weights)
    yield Part("second copy (hpZ)", states.second_copy)
    if keeps_sums_on_gpu(layout):
        keeps_memory = layout.stage == 3 or layout.is_bf16_optimizer  # the others free it with the step
        yield Part("gradients", states.gradients, PHASES if keeps_memory else PHASES[:3])
    if not layout.offload_optimizer:
        yield Part("master weights", states.master_weights)
        yield Part("optimizer moments", states.moments)
    yield from _message_parts(layout) if layout.stage == 3 else _message_parts_of_flat_groups(layout)
    yield Part("gathered weights", _gathered_weights(layout) * layout.weight_bytes, (loss, layer, evaluation))
    active = activations(layout)
    yield Part("activations", active.kept, (loss, layer))
    yield Part("logits and loss", active.at_loss, (loss,))
    is_recomputed = layout.checkpoint_every is not None
    yield Part("recomputed layer" if is_recomputed else "gradients of a layer", active.in_layer, (layer,))
    yield Part("logits of an evaluation", evaluation_bytes(layout), (evaluation,))
    yield Part("casts of the step", _step_bytes(layout, has_gpu=has_gpu), (step,))


def _message_parts(layout: TrainingLayout) -> Iterator[Part]:
    """Gradients on their way to their sums in stage 3."""
    loss, layer = PHASES[:2]
    if not layout.adds_gradients_in_place:
        yield Part("reduce bucket", layout.zero.reduce_bucket_size * layout.weight_bytes)
    # One is being computed while another is flattened to be reduced.
    yield Part("gradients in flight", 2 * largest_parameter(layout) * layout.weight_bytes, (loss, layer))
    yield Part("gradients of whole layers", _layer_gradients(layout) * layout.weight_bytes, (layer,))


def _message_parts_of_flat_groups(layout: TrainingLayout) -> Iterator[Part]:
    """The same in stages 1 and 2. Stage 1 reduces them once, before the step."""
    loss, layer, step, _ = PHASES
    reduced_in = (step,) if layout.stage == 1 else (loss, layer)
    in_flight = 2 * largest_parameter(layout)
    if layout.is_bf16_optimizer and not layout.frees_gradients_at_once:
        yield Part("gradients of a micro step", num_parameters(layout.shape) * layout.weight_bytes, PHASES[:3])
    else:
        yield Part("gradients in flight", in_flight * layout.weight_bytes, (loss, layer))
    if not layout.is_bf16_optimizer:
        each = FP32_BYTES if layout.stage == 1 and has_flat_sums(layout) else layout.weight_bytes
        yield Part("reduce bucket", layout.zero.reduce_bucket_size * each, PHASES[: 4 - layout.stage])
        if layout.offload_optimizer:
            yield Part("gradient to copy", largest_parameter(layout) * layout.weight_bytes)
    yield Part("message of gradients", message_bytes(layout), reduced_in)
    yield Part("reduced gradients", reduced_bytes(layout), reduced_in)


def _host_parts(layout: TrainingLayout) -> Iterator[Part]:
    states, local = model_states(layout), layout.num_local_processes
    if flattens_on_host(layout):
        yield Part("weights, as they are and flat", flattening_bytes(layout) * local, (START,))
    if layout.offload_parameters and not layout.parameters_on_disk:
        # Once a parameter at a time while the model is built, which torch's pinned pool keeps; and once flat.
        yield Part("weights", states.weights * local)
        yield Part("pinned pool of the weights", 2 * states.weights * local)
    if layout.offload_optimizer:
        copies = [] if layout.optimizer_on_disk else [FP32_BYTES * group.size for group in sub_groups(layout)]
        pinned = [*([] if keeps_sums_on_gpu(layout) else [states.gradients]), *copies]
        if layout.stage < 3:
            gradient = largest_parameter(layout) * layout.weight_bytes
            pinned += [gradient, *(group.size * layout.weight_bytes for group in sub_groups(layout))]
        yield Part("gradients", sum(pinned) * local)
        pinned += copies if layout.stage < 3 else []  # as large as the master weights, which are pinned there
        yield Part("rounding of pinned memory", sum(map(_pinned_rounding, pinned)) * local)
    if layout.offload_optimizer and not layout.optimizer_on_disk:
        yield Part("master weights", states.master_weights * local)
        yield Part("optimizer moments", states.moments * local)
    if layout.offload_checkpoints:
        inputs = layout.num_tokens * layout.shape.hidden_size * layout.weight_bytes * layout.shape.num_hidden_layers
        yield Part("inputs of checkpointed layers", inputs * local)


def _gathered_weights(layout: TrainingLayout) -> int:
    """Weights that are whole on a GPU at once; none where their only partition is on that GPU."""
    if not _gathers(layout):
        return 0
    live = min(num_parameters(layout.shape), layout.zero.max_live_parameters)
    return max(live, largest_parameter(layout), layer_parameters(layout.shape))  # a layer is gathered at once


def _gathers(layout: TrainingLayout) -> bool:
    return layout.stage == 3 and (layout.num_processes > 1 or layout.offload_parameters)


def _layer_gradients(layout: TrainingLayout) -> int:
    """The gradients of a layer, reduced when all of it are there, and the message that is put together of them."""
    layer = layer_parameters(layout.shape)
    if layout.adds_gradients_in_place:
        return max(0, layer - 2 * largest_parameter(layout))
    return layer + min(layout.zero.reduce_bucket_size, num_parameters(layout.shape))


def _launched_ahead(layout: TrainingLayout) -> int:
    """Weights and gradients of layers that the host has released and the GPU has still to compute or reduce.

    On one GPU they are freed in the order in which they are used, so that nothing accumulates.
    """
    if layout.adds_gradients_in_place or layout.stage < 3:
        return 0
    each = layout.zero.reduce_bucket_size + (layer_parameters(layout.shape) if _gathers(layout) else 0)
    return min(MAX_MESSAGES_IN_FLIGHT * each, 2 * num_parameters(layout.shape))


def _step_bytes(layout: TrainingLayout, *, has_gpu: bool) -> int:
    """The larger of the norm's fp64 copy of a gradient, and the fp32 gradients of one sub-group with work space."""
    groups = sub_groups(layout)
    largest = min(largest_parameter(layout), max(max(group.partitions) for group in groups))
    if layout.offload_optimizer:
        return FP64_BYTES * min(largest, NORM_CHUNK)
    size = max(group.size for group in groups)
    # They are flattened in their own type first, and both are there while they are cast.
    casts = size * (FP32_BYTES + (2 if layout.grad_accum_dtype in HALF_TYPES else 0))
    if layout.stage < 3 and (layout.is_bf16_optimizer or has_flat_sums(layout)):
        casts = 0  # the sums are fp32 and flat
    work = {
        "adamw_bf16": 2 * FP32_BYTES * min(size, FUSED_ADAMW_CHUNK if has_gpu else ADAMW_CHUNK),
        "muon": MUON_COPIES * 2 * layout.shape.hidden_size * layout.shape.intermediate_size,
    }
    return max(FP64_BYTES * largest, casts + work.get(layout.optimizer, 0))


def _pinned_rounding(num_bytes: int) -> int:
    """Bytes that torch's pinned memory takes beyond: it rounds up to a power of two (c10, CachingHostAllocator)."""
    return (1 << (num_bytes - 1).bit_length()) - num_bytes
