"""The flags of pretrain.py, with their defaults: the pretraining recipe of Llama 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pretraining.cli.arguments.checkpointing import DurabilityArguments
from pretraining.cli.arguments.conflicts import check_together
from pretraining.cli.arguments.monitoring import ObservabilityArguments
from pretraining.cli.arguments.optimization import OptimizationArguments
from pretraining.cli.arguments.planning import PlanArguments
from pretraining.cli.arguments.trainer import AUTO, trainer_group
from pretraining.cli.flags import flag
from pretraining.cli.recipe import FlagGroup, dataclass_group, parse_recipe
from pretraining.errors import UserError


@dataclass(frozen=True)
class KernelArguments:
    """How layers compute; the flags of every training program."""

    attention_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] = flag(
        "sdpa", "attention kernel; sdpa uses flash attention on GPUs where it can"
    )
    loss_tiles: int | None = flag(None, "number of tiles for logits and loss (less memory)")
    mlp_tiles: int | None = flag(None, "number of tiles for each MLP and norm, recomputed in backward (less memory)")
    compile_layers: bool | None = flag(
        None,
        "torch.compile each layer: up to a minute at the start, then less time and memory; without it, pretrain.py "
        "compiles long runs on a CPU",
    )


@dataclass(frozen=True)
class ModelArguments(KernelArguments):
    """Which model is trained, and how its layers compute."""

    model: str = flag("llama2_7b", "preset (llama2_7b, tinyllama_1b, ...), config.json, its folder, or Hub id")
    model_overrides: list[str] = flag(
        [], "fields of the model's config to replace, as hidden_size=512 num_hidden_layers=4"
    )
    pad_vocabulary_to_multiple_of: int | None = flag(None, "round the vocabulary up, as 64, for faster kernels")
    sequence_parallel_size: int = flag(1, "GPUs that share each block, a part of its length each, for long blocks")
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

    @property
    def finds_micro_batch(self) -> bool:
        """Whether the largest --per_device_train_batch_size that fits is found by trial steps."""
        return self.trainer["per_device_train_batch_size"] == AUTO


def parse_pretrain_arguments(description: str, argv: Sequence[str]) -> PretrainArguments:
    """Read recipe and flags.

    Raises:
        UserError: with all problems at once.
    """
    groups = [dataclass_group("Model", ModelArguments), dataclass_group("Data", DataArguments), *run_groups()]
    arguments = PretrainArguments(*parse_recipe(description, groups, argv))
    check_together(arguments)
    return arguments


def run_groups(trainer_defaults: dict[str, Any] | None = None) -> list[FlagGroup]:
    """The groups of flags of every training program, in the order of the fields of `PretrainArguments`."""
    return [
        dataclass_group("Optimization", OptimizationArguments),
        dataclass_group("Checkpoints and stops", DurabilityArguments),
        dataclass_group("Monitoring", ObservabilityArguments),
        dataclass_group("Plan", PlanArguments),
        trainer_group(trainer_defaults),
    ]
