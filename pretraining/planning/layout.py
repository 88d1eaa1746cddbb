"""How a model is laid out over GPUs and in time: all that decides the bytes of its training, and nothing else."""

from dataclasses import dataclass
from typing import Any, Literal

from pretraining.planning.flops import LlamaShape

HALF_TYPES = ("bf16", "fp16")


@dataclass(frozen=True)
class ZeroSettings:
    """What a DeepSpeed config says about memory, in numbers of weights."""

    sub_group_size: int
    reduce_bucket_size: int
    param_persistence_threshold: int
    max_live_parameters: int

    @classmethod
    def of(cls, zero: dict[str, Any], *, hidden_size: int) -> "ZeroSettings":
        """Of a config's zero_optimization: what is "auto" follows from the model, as in transformers and accelerate."""
        from_model = {
            "reduce_bucket_size": hidden_size * hidden_size,
            "stage3_param_persistence_threshold": 10 * hidden_size,
        }
        defaults = {  # DeepSpeed's, where the config says nothing
            "sub_group_size": 1e9,
            "reduce_bucket_size": 5e8,
            "stage3_param_persistence_threshold": 1e5,
            "stage3_max_live_parameters": 1e9,
        }
        values = {
            name: from_model[name] if zero.get(name) == "auto" else int(zero.get(name, default))
            for name, default in defaults.items()
        }
        return cls(*values.values())


@dataclass(frozen=True)
class TrainingLayout:
    """A model, its precision and optimizer, where they lie, and what one micro step of one process works on."""

    shape: LlamaShape
    zero: ZeroSettings
    block_length: int
    micro_batch_blocks: int
    evaluation_blocks: int  # of an evaluation's micro batch
    num_processes: int
    num_local_processes: int  # of one machine, which share its host memory
    precision: str  # of weights and activations
    grad_accum_dtype: str
    optimizer: str
    offload_optimizer: bool = False
    offload_parameters: bool = False
    optimizer_on_disk: bool = False  # offloaded, and not to host memory
    parameters_on_disk: bool = False
    sequence_parallel_size: int = 1
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "sdpa"
    masks_documents: bool = False
    checkpoint_every: int | None = None  # one of so many layers keeps nothing but its input
    offload_checkpoints: bool = False
    loss_tiles: int | None = None
    mlp_tiles: int | None = None
    compiles_layers: bool = False
    computes_in_fp8: bool = False  # the products of compiled layers

    @property
    def weight_bytes(self) -> int:
        """Of one weight in forward and backward."""
        return 2 if self.precision in HALF_TYPES else 4

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro step on one GPU."""
        return self.micro_batch_blocks * self.block_length // self.sequence_parallel_size
