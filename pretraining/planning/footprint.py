"""All bytes of a run on one GPU and in host memory, part by part, and the moment of a step at which they are most.

What DeepSpeed and torch allocate is counted from their code; what the driver, communication and fragmentation take is
assumed, in the constants below.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.planning.activations import activations, evaluation_bytes
from pretraining.planning.flops import layer_parameters, num_parameters
from pretraining.planning.layout import HALF_TYPES, TrainingLayout
from pretraining.planning.model_states import FP32_BYTES, largest_parameter, model_states, sub_groups

MOMENTS = ("at the loss", "in a layer", "optimizer's step", "evaluation")
FP64_BYTES = 8
NORM_CHUNK = 250_000_000  # of an offloaded gradient, whose norm is taken so many weights at a time (stage3.py)
BF16_ADAMW_CHUNK = 1 << 25  # weights that --optim adamw_bf16 has in fp32 at a time, three times
MUON_COPIES = 6  # of the largest matrix in bf16: whole, sent, received, and what Newton and Schulz's iteration needs
CONTEXT_BYTES = 1_500_000_000  # assumed: CUDA context, cuBLAS workspaces, NCCL buffers
FRAGMENTATION = 0.03  # assumed, of what the allocator gives
PROCESS_BYTES = 1_000_000_000  # assumed, of a process in host memory: 0.5 GB of libraries, and what they allocate


@dataclass(frozen=True)
class Part:
    """Bytes of one kind, always there or only at some moments of a step."""

    name: str
    num_bytes: int
    moments: tuple[str, ...] = MOMENTS
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
    def peak_moment(self) -> str:
        """When a GPU holds most."""
        return max(MOMENTS, key=self._bytes_at)

    @property
    def gpu_bytes(self) -> int:
        """The most that a GPU holds."""
        return self._bytes_at(self.peak_moment)

    @property
    def host_bytes(self) -> int:
        """The most in host memory; some of it only while the run starts or is saved."""
        return sum(part.num_bytes for part in self.on_host)

    def _bytes_at(self, moment: str) -> int:
        return sum(part.num_bytes for part in self.on_gpu if moment in part.moments)


def footprint(layout: TrainingLayout, *, has_gpu: bool = True) -> Footprint:
    """Of a run on GPUs, or, without any, in host memory alone."""
    on_gpu = [part for part in _gpu_parts(layout) if part.num_bytes]
    on_host = [part for part in _host_parts(layout) if part.num_bytes]
    if has_gpu:
        reserve = int(FRAGMENTATION * Footprint(tuple(on_gpu), ()).gpu_bytes)
        on_gpu.append(Part("CUDA context, NCCL (assumed)", CONTEXT_BYTES, is_assumed=True))
        on_gpu.append(Part("fragmentation (assumed)", reserve, is_assumed=True))
        on_host.append(Part("weights, at start and export", num_parameters(layout.shape) * layout.weight_bytes))
        return Footprint(tuple(on_gpu), tuple(on_host))
    whole = Footprint(tuple(on_gpu), ())
    moment = whole.peak_moment
    shared = [Part(part.name, part.num_bytes * layout.num_local_processes) for part in on_gpu if moment in part.moments]
    return Footprint((), tuple(shared + on_host))


def _gpu_parts(layout: TrainingLayout) -> Iterator[Part]:
    """Everything but what is assumed."""
    states = model_states(layout)
    loss, layer, step, evaluation = MOMENTS
    if not layout.offload_parameters:
        yield Part("weights", states.weights)
    yield Part("small weights, kept whole", states.whole_weights)
    if not layout.offload_optimizer:
        yield Part("gradients", states.gradients)
        yield Part("master weights", states.master_weights)
        yield Part("optimizer moments", states.moments)
    yield Part("reduce bucket", layout.zero.reduce_bucket_size * layout.weight_bytes)
    # One is being computed while another is flattened to be reduced.
    yield Part("gradients under way", 2 * largest_parameter(layout) * layout.weight_bytes, (loss, layer))
    yield Part("gathered weights", _gathered_weights(layout) * layout.weight_bytes, (loss, layer, evaluation))
    active = activations(layout)
    yield Part("activations", active.kept, (loss, layer))
    yield Part("logits and loss", active.at_loss, (loss,))
    computed_again = layout.checkpoint_every is not None
    yield Part("layer computed again" if computed_again else "gradients of a layer", active.in_layer, (layer,))
    yield Part("logits of an evaluation", evaluation_bytes(layout), (evaluation,))
    yield Part("casts of the step", _step_bytes(layout), (step,))


def _host_parts(layout: TrainingLayout) -> Iterator[Part]:
    states, local = model_states(layout), layout.num_local_processes
    yield Part("processes (assumed)", PROCESS_BYTES * local, is_assumed=True)
    if layout.offload_parameters and not layout.parameters_on_disk:
        # Once while the model is made, a parameter at a time, which torch keeps as its pool; and once flat.
        yield Part("weights", states.weights * local)
        yield Part("pinned pool of the weights", 2 * states.weights * local)
    if layout.offload_optimizer:
        copies = [] if layout.optimizer_on_disk else [FP32_BYTES * group.size for group in sub_groups(layout)]
        pinned = [states.gradients, *copies]
        yield Part("gradients", sum(pinned) * local)
        yield Part("rounding of pinned memory", sum(map(_pinned_rounding, pinned)) * local)
    if layout.offload_optimizer and not layout.optimizer_on_disk:
        yield Part("master weights", states.master_weights * local)
        yield Part("optimizer moments", states.moments * local)
    if layout.offload_checkpoints:
        inputs = layout.num_tokens * layout.shape.hidden_size * layout.weight_bytes * layout.shape.num_hidden_layers
        yield Part("inputs of checkpointed layers", inputs * local)


def _gathered_weights(layout: TrainingLayout) -> int:
    """Weights that are whole on a GPU at once, of partitions that are elsewhere; none where they all lie there."""
    if layout.num_processes == 1 and not layout.offload_parameters:
        return 0
    most = min(num_parameters(layout.shape), layout.zero.max_live_parameters)
    return max(most, largest_parameter(layout), layer_parameters(layout.shape))  # a layer is gathered at once


def _step_bytes(layout: TrainingLayout) -> int:
    """The larger of the norm's fp64 copy of a gradient, and the fp32 gradients of one sub-group with what it needs."""
    groups = sub_groups(layout)
    largest = max(max(group.partitions) for group in groups)
    if layout.offload_optimizer:
        return FP64_BYTES * min(largest, NORM_CHUNK)
    size = max(group.size for group in groups)
    # Flattened in their own type first; both are there while they are cast.
    casts = size * (FP32_BYTES + (2 if layout.grad_accum_dtype in HALF_TYPES else 0))
    work = {
        "adamw_bf16": 3 * FP32_BYTES * min(size, BF16_ADAMW_CHUNK),
        "muon": MUON_COPIES * 2 * layout.shape.hidden_size * layout.shape.intermediate_size,
    }
    return max(FP64_BYTES * largest, casts + work.get(layout.optimizer, 0))


def _pinned_rounding(num_bytes: int) -> int:
    """What torch's pinned memory takes more: a power of two each (c10, CachingHostAllocator)."""
    return (1 << (num_bytes - 1).bit_length()) - num_bytes
