"""What decides the bytes of a training: the layout of the model over processes, and the machine that has to hold it."""

from dataclasses import dataclass
from typing import Any, Literal

from pretraining.planning.flops import LlamaShape
from pretraining.system.gpus import GpuType

FP32_BYTES = 4
HALF_TYPES = ("bf16", "fp16")
MAX_GPUS_PER_MACHINE = 8
# Of the memory that a GPU reports. Its driver keeps 0.4 %; and where less than 2 % stays free, the allocator gives its
# cache back and starts again in every step, which takes 1 to 2 s: gradients of a Llama-2-7B summed in fp32 would take
# 146.6 of the 150.1 GB of an H200, by what is counted.
USABLE_SHARE = 0.96


@dataclass(frozen=True)
class ZeroSettings:
    """The settings of a DeepSpeed config that decide memory, in numbers of weights."""

    sub_group_size: int
    reduce_bucket_size: int
    param_persistence_threshold: int
    max_live_parameters: int

    @classmethod
    def of(cls, zero: dict[str, Any], *, hidden_size: int) -> "ZeroSettings":
        """Read zero_optimization; what is "auto" follows from the model, as in transformers and accelerate."""
        from_model = {
            "reduce_bucket_size": hidden_size * hidden_size,
            "stage3_param_persistence_threshold": 10 * hidden_size,
        }
        deepspeed_defaults = {
            "sub_group_size": 1e9,
            "reduce_bucket_size": 5e8,
            "stage3_param_persistence_threshold": 1e5,
            "stage3_max_live_parameters": 1e9,
        }
        values = {
            name: from_model[name] if zero.get(name) == "auto" else int(zero.get(name, default))
            for name, default in deepspeed_defaults.items()
        }
        return cls(*values.values())


@dataclass(frozen=True)
class TrainingLayout:
    """A model, its precision and optimizer, the memory that holds them, and the micro step of one process."""

    shape: LlamaShape
    zero: ZeroSettings
    block_length: int
    micro_batch_blocks: int
    evaluation_blocks: int  # of a micro batch of an evaluation
    num_processes: int
    num_local_processes: int  # of one machine; they share its host memory
    precision: str  # of weights and activations
    grad_accum_dtype: str
    optimizer: str
    offload_optimizer: bool = False
    offload_parameters: bool = False
    optimizer_on_disk: bool = False  # offloaded to NVMe rather than to host memory
    parameters_on_disk: bool = False
    sequence_parallel_size: int = 1
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "sdpa"
    masks_documents: bool = False
    checkpoint_every: int | None = None  # one of this many layers keeps nothing but its input
    offload_checkpoints: bool = False
    loss_tiles: int | None = None
    mlp_tiles: int | None = None
    compiles_layers: bool = False
    computes_in_fp8: bool = False  # the matrix multiplications of compiled layers
    keeps_fp32_sums: bool = False  # --grad_accum_dtype fp32 was given, so offloading does not change it

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight in forward and backward."""
        return 2 if self.precision in HALF_TYPES else FP32_BYTES

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

    @property
    def has_gpu(self) -> bool:
        """Whether the run is on GPUs."""
        return self.gpu_bytes is not None

    @property
    def usable_gpu_bytes(self) -> int:
        """Bytes of a GPU that a run may need; 0 without GPUs."""
        return int(USABLE_SHARE * (self.gpu_bytes or 0))
