"""The flags of the programs, with their defaults: the pretraining recipe of Llama 2.

Each dataclass reports its own mistakes when it is built. A value's home: here, then the recipe, then the command line.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretraining.cli.errors import UserError
from pretraining.cli.flags import flag
from pretraining.cli.recipe import FlagGroup
from pretraining.cli.trainer_flags import trainer_flags

SAMPLE_CORPUS = Path("data/sample/news.jsonl")
SEED_RANGE = "0 to 4,294,967,295"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # of a data set
SAMPLE_TOKENIZER = "data/sample/tokenizer"

# What differs from the Trainer's own defaults: Llama 2 (arXiv 2307.09288, section 2.2), and settings without which
# the numbers in the log are not what they say.
TRAINER_DEFAULTS: dict[str, Any] = {
    "output_dir": None,  # runs/MODEL
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "num_train_epochs": 1.0,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}',  # min_lr itself needs optimizer.defaults, which ZeRO-3's lacks
    "warmup_steps": 2000,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "bf16": None,  # where the hardware has bf16 instructions
    "log_level": "error",  # theirs; the lines of this suite do not depend on it
    "log_level_replica": "error",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # true hides NaN from the log, and synchronizes once a micro step
    "save_steps": 500,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "prediction_loss_only": True,
    "report_to": ["tensorboard"],
    "hub_private_repo": True,  # theirs publishes whatever is pushed
    "remove_unused_columns": False,
    "ddp_timeout": 7200,  # seconds; rank 0 may write a checkpoint for longer than the usual 1,800
    "deepspeed": "ds_config.json",
    "seed": 42,
}


RANGES = {
    "per_device_train_batch_size": "1 or more",
    "per_device_eval_batch_size": "1 or more",
    "seed": SEED_RANGE,
}


@dataclass(frozen=True)
class TokenizerArguments:
    """Flags of train_tokenizer.py."""

    data_files: list[str] = flag(
        [str(SAMPLE_CORPUS)], "JSONL, Parquet or .txt files (.gz, .zst, .xz too), folders, globs"
    )
    text_field: str = flag("text", "field that holds a document's text; a.b is field b of object a")
    max_document_bytes: int = flag(6 << 20, "lines larger than this are skipped")
    vocab_size: int = flag(32000, "tokens in the vocabulary, special tokens included")
    output_dir: Path = flag(Path("tokenizer"), "tokenizer folder to make")

    def __post_init__(self) -> None:
        """Check what needs no file."""
        smallest = 3 + 256  # special tokens and every byte
        if self.vocab_size < smallest:
            raise UserError(f"--vocab_size {self.vocab_size}: three special tokens and 256 bytes need {smallest}")


@dataclass(frozen=True)
class ModelArguments:
    """Which model is trained, and how its layers compute."""

    model: str = flag("llama2_7b", "preset (llama2_7b, tinyllama_1b, ...), config.json, its folder, or Hub id")
    model_overrides: list[str] = flag(
        [], "fields of the model's config to replace, as hidden_size=512 num_hidden_layers=4"
    )
    pad_vocabulary_to_multiple_of: int | None = flag(None, "round the vocabulary up, as 64, for faster kernels")
    attention_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] = flag(
        "sdpa", "how attention is computed"
    )

    def __post_init__(self) -> None:
        """Check what needs no file."""
        multiple = self.pad_vocabulary_to_multiple_of
        if multiple is not None and multiple < 1:
            raise UserError(f"--pad_vocabulary_to_multiple_of {multiple}: is out of range; give 1 or more")


@dataclass(frozen=True)
class DataArguments:
    """What is read, and how much of it makes a step."""

    dataset: str = flag("blocks", "block store that preprocess.py made: a folder, or a data set of the Hub (USER/NAME)")
    dataset_revision: str | None = flag(None, "branch, tag or commit of a data set of the Hub; the newest without it")
    global_batch_tokens: int | None = flag(
        4_194_304, "tokens per optimizer step over all GPUs; decides the gradient accumulation"
    )


def trainer_group() -> FlagGroup:
    """Every flag of the Trainer, as a dict of what was given over our defaults."""
    flags = trainer_flags(TRAINER_DEFAULTS)
    return FlagGroup("Trainer (transformers.TrainingArguments)", flags, _with_our_defaults)


def _with_our_defaults(given: dict[str, Any]) -> dict[str, Any]:
    values = {**TRAINER_DEFAULTS, **given}
    if "lr_scheduler_type" in given and "lr_scheduler_kwargs" not in given:
        values["lr_scheduler_kwargs"] = None  # ours belong to our schedule
    checks = {
        "per_device_train_batch_size": values["per_device_train_batch_size"] >= 1,
        "per_device_eval_batch_size": values["per_device_eval_batch_size"] >= 1,
        "seed": is_seed(values["seed"]),
    }
    problems = [
        f"--{name} {values[name]}: is out of range; give {RANGES[name]}" for name, fine in checks.items() if not fine
    ]
    if values["bf16"] and values.get("fp16"):
        problems.append("--bf16 true --fp16 true: exclude each other; keep one")
    if problems:
        raise UserError(*problems)
    return values


def is_seed(number: int) -> bool:
    """Whether every random generator takes this number; numpy takes 32 bits."""
    return 0 <= number < 2**32


@dataclass(frozen=True)
class GenerateArguments:
    """Flags of generate.py."""

    model: str | None = flag(
        None, "run folder, exported model, checkpoint or Hub id; without it, the newest run in runs/"
    )
    prompt: list[str] = flag(["I wanna go"], "one or more prompts")
    prompt_file: Path | None = flag(None, "file with one prompt a line, instead of --prompt")
    output: Path | None = flag(None, "write JSON lines with prompt and continuation to this file, instead of text")
    num_samples: int = flag(1, "continuations of each prompt")
    max_new_tokens: int = flag(200, "tokens after which a continuation ends without EOS")
    temperature: float = flag(0.8, "below 1 safer, above 1 wilder")
    top_p: float = flag(0.95, "sample from the most likely tokens that together have this probability")
    top_k: int = flag(50, "sample from this many most likely tokens; 0 for all")
    repetition_penalty: float = flag(1.1, "above 1 makes tokens that stand there already less likely")
    greedy: bool = flag(False, "take the most likely token (after --repetition_penalty)")
    seed: int = flag(42, "same seed, same text")

    def __post_init__(self) -> None:
        """Check the ranges, all at once."""
        checks = {
            f"--num_samples {self.num_samples}: give 1 or more": self.num_samples >= 1,
            f"--max_new_tokens {self.max_new_tokens}: give 1 or more": self.max_new_tokens >= 1,
            f"--temperature {self.temperature}: give more than 0, or --greedy": self.temperature > 0,
            f"--top_p {self.top_p}: give more than 0, at most 1": 0 < self.top_p <= 1,
            f"--top_k {self.top_k}: give 0 or more": self.top_k >= 0,
            f"--repetition_penalty {self.repetition_penalty}: give more than 0": self.repetition_penalty > 0,
            f"--seed {self.seed}: is out of range; give {SEED_RANGE}": is_seed(self.seed),
            "--num_samples: greedy decoding has one continuation; give 1": not (self.greedy and self.num_samples > 1),
        }
        problems = [message for message, fine in checks.items() if not fine]
        if problems:
            raise UserError(*problems)
