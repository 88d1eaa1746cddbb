"""Flags of different groups that contradict each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretraining.cli.deepspeed_config import ds_config_problems
from pretraining.cli.packages import package_problems
from pretraining.errors import UserError, shortened

if TYPE_CHECKING:
    from pretraining.cli.arguments.pretrain import PretrainArguments

# bf16 keeps 8 bits: a moment that moves by less than 1/256 of itself a step may not move at all, and 1 - beta is the
# most that it moves when gradients vanish.
LARGEST_BF16_BETA = 0.99
MAX_SYNTHETIC_BLOCK_LENGTH = 1 << 20  # 300 MB on the way


def check_together(arguments: PretrainArguments) -> None:
    """Refuse what contradicts itself.

    Raises:
        UserError: with all problems at once.
    """
    problems = [
        *_environment_problems(),
        *_run_conflicts(arguments),
        *_optimizer_conflicts(arguments),
        *_kernel_conflicts(arguments),
        *ds_config_problems(arguments),
        *package_problems(arguments),
    ]
    if problems:
        raise UserError(*problems)


def _environment_problems() -> Iterator[str]:
    accelerator = os.environ.get("DS_ACCELERATOR")
    if accelerator not in (None, "cuda", "cpu"):
        yield f"DS_ACCELERATOR={shortened(accelerator)}: must be cuda or cpu; unset it, and DeepSpeed finds out"


def _run_conflicts(arguments: PretrainArguments) -> Iterator[str]:
    max_tokens, max_steps = arguments.data.max_tokens, arguments.trainer.get("max_steps", -1)
    if max_tokens is not None and max_steps > 0:
        yield f"--max_tokens {max_tokens} --max_steps {max_steps}: exclude each other; keep one"
    name = arguments.trainer.get("hub_model_id")
    if name is not None and not arguments.trainer.get("push_to_hub"):
        yield f"--hub_model_id {name}: nothing is pushed without --push_to_hub; add that, or remove this"
    strategy = arguments.trainer["hub_strategy"]
    if strategy not in ("end", "every_save"):
        yield f"--hub_strategy {strategy}: would push optimizer state, larger than the model; use end or every_save"
    if arguments.data.is_synthetic and (arguments.data.block_length or 0) > MAX_SYNTHETIC_BLOCK_LENGTH:
        yield (
            f"--dataset synthetic --block_length {arguments.data.block_length}: 64 blocks are written, so a block has "
            f"{MAX_SYNTHETIC_BLOCK_LENGTH:,} tokens at most"
        )
    if arguments.trainer.get("push_to_hub") and not arguments.durability.export:
        yield "--push_to_hub --export false: no model would be pushed; leave one of them out"


def _optimizer_conflicts(arguments: PretrainArguments) -> Iterator[str]:
    beta = arguments.trainer["adam_beta2"]
    if arguments.optimization.optim == "adamw_bf16" and beta > LARGEST_BF16_BETA:
        yield (
            f"--optim adamw_bf16 --adam_beta2 {beta:g}: moments in bf16 cannot follow a beta above "
            f"{LARGEST_BF16_BETA}; give less, or --optim adamw"
        )
    minimum, peak = arguments.optimization.min_learning_rate, arguments.trainer["learning_rate"]
    if minimum is not None and minimum > peak:
        yield f"--min_learning_rate {minimum:g}: is above --learning_rate {peak:g}; give {peak:g} or less"


def _kernel_conflicts(arguments: PretrainArguments) -> Iterator[str]:
    model, trainer = arguments.model, arguments.trainer
    has_tiles = model.loss_tiles is not None or model.mlp_tiles is not None
    if trainer.get("fp16") and model.loss_tiles is not None:
        yield "--loss_tiles --fp16: a tile's gradient is made before fp16's loss scale; use bf16 or no tiles"
    if trainer.get("use_liger_kernel") and has_tiles:
        yield (
            "--use_liger_kernel: its kernels would take the place of --loss_tiles and --mlp_tiles; leave it or them out"
        )
    if model.compile_layers and arguments.data.document_masking and model.attention_implementation.startswith("flash"):
        yield (
            "--compile_layers --document_masking: flash attention takes the length of the longest document, for each "
            "of which the layers would be compiled anew; give --attention_implementation sdpa, or leave one of them out"
        )
