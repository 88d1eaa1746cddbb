"""The flags of finetune.py, with defaults for instruction tuning; the others are those of pretrain.py."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pretraining.cli.arguments.conflicts import check_together
from pretraining.cli.arguments.preprocess import split_weights_of
from pretraining.cli.arguments.pretrain import (
    DataArguments,
    KernelArguments,
    ModelArguments,
    PretrainArguments,
    run_groups,
)
from pretraining.cli.flags import check_all, flag
from pretraining.cli.recipe import dataclass_group, parse_recipe

# What differs from pretrain.py: few steps at a small learning rate, so that the model forgets little.
FINETUNE_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0,
    "learning_rate": 2e-5,
    "warmup_steps": 0.03,  # of the run
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "eval_steps": 100,
}


@dataclass(frozen=True)
class ConversationArguments(KernelArguments):
    """The model to tune, and its conversations."""

    model: str | None = flag(None, "exported model, run folder with one, or Hub id")
    data_files: list[str] = flag(
        [],
        "conversations: JSON lines, JSON or Parquet files, compressed as for preprocess.py, or hf://USER/NAME; fields: "
        "messages, conversations (ShareGPT), prompt and response or completion, instruction, input and output (Alpaca)",
    )
    prompt_field: str | None = flag(None, "field of the question, for data with other fields; a.b is b in a")
    response_field: str | None = flag(None, "field of the answer; needs --prompt_field")
    input_field: str | None = flag(None, "field of a text that follows the question; needs --prompt_field")
    system_field: str | None = flag(None, "field of the system message; needs --prompt_field or --messages_field")
    messages_field: str | None = flag(None, "field of a list of messages, instead of --prompt_field")
    block_length: int | None = flag(None, "tokens per block; none: the positions of the model, at most 2,048")
    packing: Literal["best_fit", "alone"] = flag(
        "best_fit", "best_fit: conversations share blocks without attention between them; alone: one padded block each"
    )
    split: str = flag("95,5,0", "weights of train, validation and test; identical conversations share a split")
    global_batch_tokens: int | None = flag(
        None, "tokens per optimizer step over all GPUs; none: see --gradient_accumulation_steps"
    )
    global_batch_blocks: int | None = flag(None, "blocks per optimizer step, instead of --global_batch_tokens")
    max_tokens: int | None = flag(None, "length of the run in tokens, instead of --max_steps or --num_train_epochs")

    @property
    def field_names(self) -> str:
        """The named fields; "messages" if the fields of each record decide."""
        names = ("prompt_field", "response_field", "input_field", "system_field", "messages_field")
        given = [f"{name.removesuffix('_field')}={getattr(self, name)}" for name in names if getattr(self, name)]
        return " ".join(given) or "messages"

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        has_prompt = self.prompt_field is not None
        check_all(
            {
                "--prompt_field, --response_field: belong together; pass both": has_prompt
                == (self.response_field is not None),
                "--input_field: has no effect without --prompt_field; pass both": has_prompt
                or self.input_field is None,
                "--system_field: has no effect without --prompt_field or --messages_field; pass one of them": has_prompt
                or self.messages_field is not None
                or self.system_field is None,
                "--messages_field: excludes --prompt_field; remove one of them": not has_prompt
                or self.messages_field is None,
                "--model: is missing; pass an exported model, e.g. runs/llama2_7b/model": self.model is not None,
                "--data_files: is missing; pass files of conversations, or hf://USER/NAME": bool(self.data_files),
                f"--split {self.split}: is not three weights, not all 0; use e.g. 95,5,0": (
                    split_weights_of(self.split) is not None
                ),
            }
        )


@dataclass(frozen=True)
class FinetuneArguments:
    """A complete command of finetune.py; `run` has what training needs, as in pretrain.py.

    Its model and data are set once they were found.
    """

    conversations: ConversationArguments
    run: PretrainArguments


def parse_finetune_arguments(description: str, argv: Sequence[str]) -> FinetuneArguments:
    """Read recipe and flags.

    Raises:
        UserError: with all problems at once.
    """
    groups = [dataclass_group("Conversations", ConversationArguments), *run_groups(FINETUNE_DEFAULTS)]
    flags, *others = parse_recipe(description, groups, argv)
    kernels = {field.name: getattr(flags, field.name) for field in dataclasses.fields(KernelArguments)}
    model = ModelArguments(model=flags.model, **kernels)
    data = DataArguments(
        block_length=flags.block_length,
        global_batch_tokens=flags.global_batch_tokens,
        global_batch_blocks=flags.global_batch_blocks,
        max_tokens=flags.max_tokens,
        document_masking=True,
    )
    run = PretrainArguments(model, data, *others)
    check_together(run)
    return FinetuneArguments(flags, run)
