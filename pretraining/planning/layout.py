"""What decides the bytes of a training: the layout of the model over processes, and the machine that has to hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pretraining.cli.deepspeed_config import offloads
from pretraining.errors import UserError
from pretraining.planning.flops import LlamaShape, layer_parameters
from pretraining.system.gpus import GpuType

AUTO = "auto"
FP32_BYTES = 4
GRADIENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # by the type in which micro steps are accumulated
HALF_TYPES = ("bf16", "fp16")
MAX_GPUS_PER_MACHINE = 8
# Of the memory that a GPU reports. Its driver keeps 0.4 %; and where less than 2 % stays free, the allocator gives its
# cache back and starts again in every step, which takes 1 to 2 s: gradients of a Llama-2-7B summed in fp32 would take
# 146.5 of the 150.1 GB of an H200, by what is counted.
USABLE_SHARE = 0.96
# Assumed: a CUDA context with the loaded kernels takes 0.5 to 0.8 GB, workspaces of cuBLAS and cuDNN the rest.
CONTEXT_BYTES = 1_500_000_000
# Sizes for a model with small layers, in numbers of weights; 2e8 is a layer of Llama-2-7B.
MIN_REDUCE_BUCKET = 50_000_000
MIN_PREFETCH = 200_000_000
SUB_GROUP_SIZE = 200_000_000  # the step casts the gradients of a sub-group to fp32: 1.3 GB; 6 GB with DeepSpeed's 1e9
MAX_MESSAGES_IN_FLIGHT = 4  # of gradients, one layer each; at the next one the host waits for the first of them
REUSE_KEY = "stage3_max_reuse_distance"
# Of DeepSpeed (zero/config.py), where zero_optimization has no value.
DEFAULT_SIZES = {
    "sub_group_size": 1e9,
    "reduce_bucket_size": 5e8,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_live_parameters": 1e9,
    REUSE_KEY: 1e9,  # the weights that are kept between forward and backward
}
HPZ_KEY = "zero_hpz_partition_size"

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "documents"]
DOCUMENTS: Literal["documents"] = "documents"  # its name in transformers, which then makes no mask


@dataclass(frozen=True)
class ZeroSettings:
    """The settings of a DeepSpeed config that decide memory, in numbers of weights."""

    sub_group_size: int
    reduce_bucket_size: int
    param_persistence_threshold: int
    max_live_parameters: int
    max_reuse_distance: int = 10**9
    stage: int = 3
    hpz_partition_size: int = 1  # processes that share a second copy of all weights (hpZ); 1: there is none

    @classmethod
    def of(cls, zero: Mapping[str, Any]) -> "ZeroSettings":
        """Read zero_optimization without "auto", with DeepSpeed's defaults where it has no value."""
        sizes = {name: int(zero.get(name, default)) for name, default in DEFAULT_SIZES.items()}
        return cls(
            sub_group_size=sizes["sub_group_size"],
            reduce_bucket_size=sizes["reduce_bucket_size"],
            param_persistence_threshold=sizes["stage3_param_persistence_threshold"],
            max_live_parameters=sizes["stage3_max_live_parameters"],
            max_reuse_distance=sizes["stage3_max_reuse_distance"],
            stage=int(zero.get("stage", 3)),
            hpz_partition_size=max(1, int(zero.get(HPZ_KEY, 1))),
        )

    @classmethod
    def of_project(cls, shape: LlamaShape, *, stage: int) -> "ZeroSettings":
        """The settings of this project's configs of a stage."""
        return cls.of(resolve_auto(dict.fromkeys(DEFAULT_SIZES, AUTO) | {REUSE_KEY: 1e9, "stage": stage}, shape))


def resolve_auto(zero: Mapping[str, Any], shape: LlamaShape) -> dict[str, Any]:
    """Return zero_optimization with sizes that follow from the model in place of "auto".

    The weights of a layer are gathered at once, and their gradients are complete at once. So one layer is one message,
    and the next layer is asked for while one is computed. With smaller messages the host waits several times per layer
    for the gradients of the layer that is computed, and the GPU has nothing to do (`benchmarks.host_waits`).
    """
    layer = layer_parameters(shape)
    sizes = {
        "sub_group_size": SUB_GROUP_SIZE,
        "reduce_bucket_size": max(MIN_REDUCE_BUCKET, layer),
        "stage3_prefetch_bucket_size": max(MIN_PREFETCH, layer),
        "stage3_param_persistence_threshold": 10 * shape.hidden_size,  # norms, as in transformers
        "stage3_max_live_parameters": int(zero.get(REUSE_KEY, DEFAULT_SIZES[REUSE_KEY])) + 2 * layer,
    }
    return {name: sizes[name] if value == AUTO else value for name, value in zero.items()}


def resolve_hpz(zero: Mapping[str, Any], machine: "MachineSpec", *, place: str) -> dict[str, Any]:
    """Return zero_optimization with the processes of a machine in place of "auto" of zero_hpz_partition_size.

    With hpZ the processes of each machine share a second copy of all weights, which they gather within the machine.

    Raises:
        UserError: where it is of no use, or DeepSpeed is wrong with it; `place` begins the message.
    """
    size, local = zero.get(HPZ_KEY, 1), machine.num_local_processes
    if size in (0, 1):
        return dict(zero)
    config = {"zero_optimization": zero}
    offloaded = [f"offload_{what}" for what in ("optimizer", "param") if offloads(config, what)]
    if offloaded:  # DeepSpeed issue 6926: the loss does not move
        problem = f"is not accepted with {offloaded[0]} (DeepSpeed trains wrongly with both); remove one of them"
    elif machine.num_processes == local:
        problem = "needs several machines, on one it only costs memory; use ds_config.json"
    elif size not in (AUTO, local):
        problem = f"is not the {local} processes of a machine; set it to {local} or auto"
    elif not machine.is_uniform or machine.num_processes % local:
        number = machine.num_processes
        problem = f"not all machines have {local} of the {number} processes; start as many on each machine"
    else:
        return {**zero, HPZ_KEY: local}
    raise UserError(f"{place}: zero_optimization.{HPZ_KEY} {size}: {problem}")


@dataclass(frozen=True)
class TrainingLayout:
    """A model, its precision and optimizer, the memory that holds them, and the micro step of one process."""

    shape: LlamaShape
    zero: ZeroSettings
    block_length: int
    micro_batch_blocks: int
    num_processes: int
    num_local_processes: int  # of one machine; they share its host memory
    precision: str  # of weights and activations
    grad_accum_dtype: str
    optimizer: str
    evaluation_blocks: int | None = None  # of a micro batch of an evaluation; None: as many as in training
    offload_optimizer: bool = False
    offload_parameters: bool = False
    optimizer_on_disk: bool = False  # offloaded to NVMe rather than to host memory
    parameters_on_disk: bool = False
    sequence_parallel_size: int = 1
    attention: Attention = "sdpa"
    masks_documents: bool = False
    checkpoint_every: int | None = None  # one of this many layers keeps nothing but its input
    offload_checkpoints: bool = False
    loss_tiles: int | None = None
    mlp_tiles: int | None = None
    compiles_layers: bool = False
    computes_in_fp8: bool = False  # the matrix multiplications of compiled layers
    asked_sums: str = AUTO  # --grad_accum_dtype, from which `grad_accum_dtype` follows
    frees_gradients_at_once: bool = True  # of ZeRO-1 in bf16: immediate_grad_update, else they stay until the step
    device_bytes: int | None = None  # that the GPU reports, whatever --gpu_memory_limit; None: enough, or no GPU

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return self.zero.stage

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight in forward and backward."""
        return 2 if self.precision in HALF_TYPES else FP32_BYTES

    @property
    def adds_gradients_in_place(self) -> bool:
        """Whether gradients are added to their sums at once: a single process has nobody to exchange them with."""
        return self.stage == 3 and self.num_processes == 1 and not self.offload_optimizer

    @property
    def is_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed takes its BF16_Optimizer, which sums all gradients in fp32 (engine.py)."""
        in_fp32 = self.precision == "bf16" and self.grad_accum_dtype == "fp32"
        return self.stage == 1 and in_fp32 and not self.offload_optimizer

    @property
    def takes_mask(self) -> bool:
        """Whether this attention separates masked documents by a mask; the others take the bounds of documents."""
        return self.attention in ("eager", "sdpa")

    @property
    def num_groups(self) -> int:
        """Processes, or groups of them, that work on different blocks."""
        return self.num_processes // self.sequence_parallel_size

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro step on one GPU."""
        return self.micro_batch_blocks * self.block_length // self.sequence_parallel_size


@dataclass(frozen=True)
class MachineSpec:
    """Processes, one per GPU where there are GPUs, and the memory available to them."""

    name: str
    num_processes: int
    num_local_processes: int  # of one machine, if there are several
    gpu_bytes: int | None  # that a GPU reports; None without GPUs
    gpu_type: GpuType | None  # None without GPUs, and for a type that is not listed
    host_bytes: int | None  # of one machine; None where it is unknown, and so not checked
    is_uniform: bool = True  # as many processes on each machine
    device_bytes: int | None = None  # that a GPU reports, where `gpu_bytes` are those of --gpu_memory_limit

    @property
    def has_gpu(self) -> bool:
        """Whether the run is on GPUs."""
        return self.gpu_bytes is not None

    @property
    def usable_gpu_bytes(self) -> int:
        """Bytes of a GPU that a run may need; 0 without GPUs."""
        return int(USABLE_SHARE * (self.gpu_bytes or 0))
