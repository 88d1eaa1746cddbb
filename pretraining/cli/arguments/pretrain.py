"""The flags of pretrain.py, with their defaults: the pretraining recipe of Llama 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretraining.cli.arguments.conflicts import check_together
from pretraining.cli.arguments.run import (
    DurabilityArguments,
    KernelArguments,
    ObservabilityArguments,
    OptimizationArguments,
    PlanArguments,
    run_groups,
)
from pretraining.cli.arguments.trainer import AUTO
from pretraining.cli.flags import check_all, flag
from pretraining.cli.recipe import dataclass_group, parse_recipe


@dataclass(frozen=True)
class ModelArguments(KernelArguments):
    """Which model is trained, and how its layers compute."""

    model: str = flag("llama2_7b", "preset (llama2_7b, tinyllama_1b, ...), config.json, its folder, or Hub id")
    model_overrides: list[str] = flag(
        [], "fields of the model's config to replace, e.g. hidden_size=512 num_hidden_layers=4"
    )
    pad_vocabulary_to_multiple_of: int | None = flag(None, "pad the vocabulary to a multiple of N (e.g. 64)")
    sequence_parallel_size: int = flag(1, "GPUs per sequence (Ulysses sequence parallelism)")
    fp8: bool = flag(False, "compute matrix multiplications of compiled layers in fp8, on Ada, Hopper and newer GPUs")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        is_eager, size = self.attention_implementation == "eager", self.sequence_parallel_size
        check_all(
            {
                f"--sequence_parallel_size {size}: eager attention needs the mask of a complete block; "
                "use another --attention_implementation": size == 1 or not is_eager,
                "--compile_layers: a layer with --mlp_tiles, --sequence_parallel_size or eager attention is not one "
                "graph; remove one of them": not self.compile_layers or self.layers_are_graphs,
                "--fp8: is slower than bf16 and keeps the weights of every layer unless layers are compiled; use "
                "--compile_layers, too": not self.fp8 or bool(self.compile_layers),
            }
        )

    @property
    def layers_are_graphs(self) -> bool:
        """Whether torch.compile can compile each layer as one graph."""
        is_whole = self.mlp_tiles is None and self.sequence_parallel_size == 1
        return is_whole and self.attention_implementation != "eager"


@dataclass(frozen=True)
class DataArguments:
    """What is read, and how much of it per step."""

    dataset: list[str] = flag(
        ["blocks"],
        "block store of preprocess.py: a folder, or a dataset of the Hub (USER/NAME); several with their shares of the "
        "blocks, e.g. news=blocks_a:0.7 wiki=blocks_b:0.3; synthetic: random ids, to measure speed",
    )
    block_length: int | None = flag(
        None, "tokens per block of --dataset synthetic (4,096), or of --dry_run without blocks"
    )
    vocab_size: int = flag(32000, "vocabulary of --dataset synthetic")
    dataset_revision: str | None = flag(None, "branch, tag or commit of a dataset of the Hub; none: the newest")
    global_batch_tokens: int | None = flag(
        4_194_304, "tokens per optimizer step over all GPUs; determines gradient accumulation"
    )
    max_tokens: int | None = flag(None, "length of the run in tokens, instead of --max_steps or --num_train_epochs")
    document_masking: bool = flag(False, "no attention across documents; positions start at 0 in each")
    ignore_first_token: bool = flag(False, "ignore the loss of each document's first token")

    @property
    def is_synthetic(self) -> bool:
        """Whether random ids are read instead of data."""
        return self.dataset == ["synthetic"]


@dataclass(frozen=True)
class PretrainArguments:
    """A complete command of pretrain.py; `trainer` has the flags of the Trainer over our defaults.

    With `weights`, the folder of an exported model, a run starts from its weights instead of random ones;
    `weights_name` is the name of that model in the card.
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
