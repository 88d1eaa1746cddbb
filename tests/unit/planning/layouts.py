"""Layouts to plan for: a preset in bf16 on one GPU, with everything as the flags' defaults have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretraining.planning.flops import LlamaShape
from pretraining.planning.layout import TrainingLayout, ZeroSettings, resolve_auto


@dataclass(frozen=True)
class Shape:
    """Llama-2-7B, or another."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


LLAMA2_7B = Shape()
LLAMA2_70B = Shape(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
)
SHAPES = {"llama2_7b": LLAMA2_7B, "llama2_70b": LLAMA2_70B}
AUTO = {
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
}


def layout_of(
    name: str, *, num_gpus: int = 1, shape: LlamaShape | None = None, zero: Mapping[str, Any] = AUTO
) -> TrainingLayout:
    shape = shape or SHAPES[name]
    return TrainingLayout(
        shape=shape,
        zero=ZeroSettings.of(resolve_auto(zero, shape)),
        block_length=4096,
        micro_batch_blocks=1,
        evaluation_blocks=1,
        num_processes=num_gpus,
        num_local_processes=min(num_gpus, 8),
        precision="bf16",
        grad_accum_dtype="fp32",
        optimizer="adamw",
    )
