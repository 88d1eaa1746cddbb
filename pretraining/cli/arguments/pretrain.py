"""The flags of pretrain.py, with their defaults: the pretraining recipe of Llama 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pretraining.cli.arguments.checkpointing import DurabilityArguments
from pretraining.cli.arguments.conflicts import check_together
from pretraining.cli.arguments.monitoring import ObservabilityArguments
from pretraining.cli.arguments.optimization import OptimizationArguments
from pretraining.cli.arguments.planning import PlanArguments
from pretraining.cli.flags import flag
from pretraining.cli.packages import tracker_problems
from pretraining.cli.recipe import FlagGroup, dataclass_group, parse_recipe
from pretraining.cli.trainer_flags import trainer_flags, trainer_value_problems
from pretraining.errors import UserError

# What differs from the Trainer's own defaults: Llama 2 (arXiv 2307.09288, section 2.2), and settings without which
# the numbers in the log are not what they say.
TRAINER_DEFAULTS: dict[str, Any] = {
    "output_dir": None,  # runs/MODEL
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "num_train_epochs": 1.0,
    "learning_rate": 3e-4,
    "warmup_steps": 2000,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "bf16": None,  # where the hardware has bf16 instructions
    "log_level": "error",  # theirs; the lines of this suite do not depend on it
    "log_level_replica": "error",
    "logging_steps": 1,
    "save_steps": 500,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "prediction_loss_only": True,
    "report_to": ["tensorboard"],
    "project": "pretraining",  # of wandb, mlflow and trackio
    "hub_private_repo": True,  # theirs publishes whatever is pushed
    "hub_strategy": "end",  # theirs pushes at each save
    "ddp_timeout": 7200,  # seconds; rank 0 may write a checkpoint for longer than the usual 1,800
    "deepspeed": "ds_config.json",
    "seed": 42,
}
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")


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
    sequence_parallel_size: int = flag(1, "GPUs that share each block, a part of its length each, for long blocks")
    loss_tiles: int | None = flag(None, "compute logits and loss in so many tiles, which take less memory")
    mlp_tiles: int | None = flag(None, "compute each MLP and norm in so many tiles of the block, again in backward")
    compile_layers: bool | None = flag(
        None,
        "compile each layer with torch.compile: up to a minute at the start, then less time and memory per step; "
        "unless set, only for long runs on a CPU with a C++ compiler",
    )
    fp8: bool = flag(
        False, "compute the matrix products of compiled layers in fp8 while training, on Ada, Hopper and newer GPUs"
    )

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        problems = []
        if self.sequence_parallel_size > 1 and self.attention_implementation == "eager":
            problems.append(
                f"--sequence_parallel_size {self.sequence_parallel_size}: eager attention needs a mask of the whole "
                "block, which no process has; give another --attention_implementation"
            )
        if self.compile_layers and not self.layers_are_graphs:
            problems.append(
                "--compile_layers: a layer is one graph only without --mlp_tiles, --sequence_parallel_size and eager "
                "attention; leave them or it out"
            )
        if self.fp8 and not self.compile_layers:
            problems.append(
                "--fp8: is slower than bf16, and keeps every layer's weights, unless layers are compiled; give "
                "--compile_layers too"
            )
        if problems:
            raise UserError(*problems)

    @property
    def layers_are_graphs(self) -> bool:
        """Whether torch.compile can take each layer as one graph."""
        is_whole = self.mlp_tiles is None and self.sequence_parallel_size == 1
        return is_whole and self.attention_implementation != "eager"


@dataclass(frozen=True)
class DataArguments:
    """What is read, and how much of it makes a step."""

    dataset: list[str] = flag(
        ["blocks"],
        "block store that preprocess.py made: a folder, or a data set of the Hub (USER/NAME); several with their "
        "shares of the blocks, as news=blocks_a:0.7 wiki=blocks_b:0.3; or synthetic: random ids, to measure speed",
    )
    block_length: int | None = flag(
        None, "tokens of a block of --dataset synthetic (4,096), and of --dry_run where no blocks are there"
    )
    vocab_size: int = flag(32000, "different ids of --dataset synthetic")
    dataset_revision: str | None = flag(None, "branch, tag or commit of a data set of the Hub; the newest without it")
    global_batch_tokens: int | None = flag(
        4_194_304, "tokens per optimizer step over all GPUs; decides the gradient accumulation"
    )
    max_tokens: int | None = flag(None, "length of the run in tokens, in place of --max_steps or --num_train_epochs")
    document_masking: bool = flag(False, "attention does not cross documents, and positions begin anew in each")
    ignore_first_token: bool = flag(False, "no loss for a document's first token, which nothing before it tells")

    @property
    def is_synthetic(self) -> bool:
        """Whether random ids are read in place of data."""
        return self.dataset == ["synthetic"]


@dataclass(frozen=True)
class PretrainArguments:
    """All that a command of pretrain.py says; `trainer` has the flags of the Trainer over our defaults.

    With `weights`, a folder, a run begins with those of an exported model in place of fresh ones; `weights_name` is
    what its card calls that model.
    """

    model: ModelArguments
    data: DataArguments
    optimization: OptimizationArguments
    durability: DurabilityArguments
    observability: ObservabilityArguments
    plan: PlanArguments
    trainer: dict[str, Any]
    weights: str | None = None
    weights_name: str | None = None


def parse_pretrain_arguments(description: str, argv: Sequence[str]) -> PretrainArguments:
    """Read recipe and flags.

    Raises:
        UserError: with all problems at once.
    """
    groups = [
        dataclass_group("Model", ModelArguments),
        dataclass_group("Data", DataArguments),
        dataclass_group("Optimization", OptimizationArguments),
        dataclass_group("Durability", DurabilityArguments),
        dataclass_group("Observability", ObservabilityArguments),
        dataclass_group("Plan", PlanArguments),
        trainer_group(),
    ]
    arguments = PretrainArguments(*parse_recipe(description, groups, argv))
    check_together(arguments)
    return arguments


def trainer_group() -> FlagGroup:
    """Every flag of the Trainer, as a dict of what was given over our defaults."""
    flags = trainer_flags(TRAINER_DEFAULTS)
    return FlagGroup("Trainer (transformers.TrainingArguments)", flags, with_our_defaults)


def with_our_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """What was given over our defaults.

    Raises:
        UserError: with all problems at once.
    """
    values = {**TRAINER_DEFAULTS, **given}
    values["report_to"] = values["report_to"] or []  # "none" was read as no value, which the Trainer refuses
    values["trackio_static_space_id"] = values.get("trackio_static_space_id") or False  # theirs makes one at a push
    problems = [*tracker_problems(values["report_to"]), *trainer_value_problems(values)]
    if values["bf16"] and values.get("fp16"):
        problems.append("--bf16 true --fp16 true: exclude each other; keep one")
    for name in STRATEGIES:
        if values.get(name) == "epoch":
            steps = name.replace("strategy", "steps")
            problems.append(f"--{name} epoch: blocks are read on and on here, so count in steps; give --{steps} N")
    if problems:
        raise UserError(*problems)
    return values
