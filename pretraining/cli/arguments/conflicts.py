"""Flags of different groups that contradict each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretraining.cli.deepspeed_config import ds_config_problems
from pretraining.cli.packages import package_problems
from pretraining.errors import raise_problems, shortened
from pretraining.system.launchers import accelerate_problem

if TYPE_CHECKING:
    from pretraining.cli.arguments.pretrain import ModelArguments, PretrainArguments

# bf16 has 8 bits of precision: a moment that changes by less than 1/256 of itself per step may not change at all, and
# 1 - beta is the largest relative change when gradients vanish.
MAX_BF16_BETA = 0.99
MAX_SYNTHETIC_BLOCK_LENGTH = 1 << 20  # 300 MB while they are written


def check_together(arguments: PretrainArguments) -> None:
    """Check for flags that contradict each other.

    Raises:
        UserError: with all problems at once.
    """
    problems = [
        *_environment_problems(),
        *_run_conflicts(arguments),
        *_weights_conflicts(arguments.model, is_synthetic=arguments.data.is_synthetic),
        *_optimizer_conflicts(arguments),
        *_kernel_conflicts(arguments),
        *ds_config_problems(arguments),
        *package_problems(arguments),
    ]
    raise_problems(problems)


def _environment_problems() -> Iterator[str]:
    accelerator = os.environ.get("DS_ACCELERATOR")
    if accelerator not in (None, "cuda", "cpu"):
        yield f"DS_ACCELERATOR={shortened(accelerator)}: must be cuda or cpu; unset it to let DeepSpeed choose"
    yield from filter(None, [accelerate_problem()])


def _run_conflicts(arguments: PretrainArguments) -> Iterator[str]:
    max_tokens, max_steps = arguments.data.max_tokens, arguments.trainer.get("max_steps", -1)
    if arguments.data.phases and max_tokens is None and max_steps <= 0:
        yield "--phases: the length of the run is missing, of which each has a share; add --max_tokens or --max_steps"
    name = arguments.trainer.get("hub_model_id")
    if name is not None and not arguments.trainer.get("push_to_hub"):
        yield f"--hub_model_id {name} --push_to_hub false: contradict each other; remove one of them"
    if arguments.data.is_synthetic and (arguments.data.block_length or 0) > MAX_SYNTHETIC_BLOCK_LENGTH:
        yield (
            f"--dataset synthetic --block_length {arguments.data.block_length}: blocks of synthetic data have "
            f"{MAX_SYNTHETIC_BLOCK_LENGTH:,} tokens at most"
        )
    if arguments.trainer.get("push_to_hub") and not arguments.durability.export:
        yield "--push_to_hub --export false: no model would be pushed; remove one of them"


def _weights_conflicts(model: ModelArguments, *, is_synthetic: bool) -> Iterator[str]:
    if model.weights is None:
        if model.grow_vocabulary:
            yield "--grow_vocabulary: is for the vocabulary of --weights; add it, or remove this flag"
        return
    if is_synthetic:
        yield f"--dataset synthetic --weights {model.weights}: random ids are not text; remove --weights"
    if model.names_model:
        yield f"--model {model.model} --weights {model.weights}: the weights come with their config; remove --model"
    if model.pad_vocabulary_to_multiple_of is not None and not model.grow_vocabulary:
        yield (
            f"--pad_vocabulary_to_multiple_of {model.pad_vocabulary_to_multiple_of}: changes the shape of --weights; "
            "add --grow_vocabulary, or remove this flag"
        )


def _optimizer_conflicts(arguments: PretrainArguments) -> Iterator[str]:
    beta = arguments.trainer["adam_beta2"]
    if arguments.optimization.optim == "adamw_bf16" and beta > MAX_BF16_BETA:
        yield (
            f"--optim adamw_bf16 --adam_beta2 {beta:g}: moments in bf16 cannot follow a beta above "
            f"{MAX_BF16_BETA}; use less, or --optim adamw"
        )
    minimum, peak = arguments.optimization.min_learning_rate, arguments.trainer["learning_rate"]
    first = [phase for phase in arguments.data.phases[:1] if phase.learning_rate or phase.min_learning_rate is not None]
    if minimum is not None and minimum > peak and not first:  # the schedule checks the rates of a phase
        yield f"--min_learning_rate {minimum:g}: is above --learning_rate {peak:g}; use {peak:g} or less"


def _kernel_conflicts(arguments: PretrainArguments) -> Iterator[str]:
    model, trainer = arguments.model, arguments.trainer
    has_tiles = model.loss_tiles is not None or model.mlp_tiles is not None
    if trainer.get("fp16") and model.loss_tiles is not None:
        yield "--loss_tiles --fp16: the gradient of a tile is computed before fp16's loss scaling; use bf16 or no tiles"
    if trainer.get("use_liger_kernel") and has_tiles:
        yield ("--use_liger_kernel: its kernels would replace --loss_tiles and --mlp_tiles; remove it or them")
    if model.compile_layers and arguments.data.document_masking and model.attention_implementation.startswith("flash"):
        yield (
            "--compile_layers --document_masking: with flash attention the layers would be compiled again for each "
            "length of the longest document; use --attention_implementation sdpa, or remove one of them"
        )
