"""The flags of pretrain.py, with their defaults: the pretraining recipe of Llama 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pretraining.cli.arguments.conflicts import check_together
from pretraining.cli.arguments.phases import PhaseArguments, phases_problems, read_phase
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
from pretraining.errors import raise_problems

DEFAULT_MODEL = "llama2_7b"
DEFAULT_DATASET = ["blocks"]


@dataclass(frozen=True)
class ModelArguments(KernelArguments):
    """Which model is trained, and how its layers compute. With `weights`, `model` is their folder once it is found."""

    model: str = flag(
        DEFAULT_MODEL, "preset (llama2_7b, tinyllama_1b, ...), config.json, its folder, or Hub id; random weights"
    )
    weights: str | None = flag(
        None, "train on from this model: run folder, exported model, checkpoint, or Hub id (USER/NAME[@REVISION])"
    )
    grow_vocabulary: bool = flag(
        False, "the tokenizer of the blocks may have more tokens than that of --weights; they start as the mean token"
    )
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
    def place(self) -> str:
        """The flag that names the model, with its value, as errors begin."""
        return f"--model {self.model}" if self.weights is None else f"--weights {self.weights}"

    @property
    def names_model(self) -> bool:
        """Whether `model` is another one than the default."""
        return self.model != DEFAULT_MODEL

    @property
    def layers_are_graphs(self) -> bool:
        """Whether torch.compile can compile each layer as one graph."""
        is_whole = self.mlp_tiles is None and self.sequence_parallel_size == 1
        return is_whole and self.attention_implementation != "eager"


@dataclass(frozen=True)
class DataArguments:
    """What is read, and how much of it per step."""

    dataset: list[str] = flag(
        DEFAULT_DATASET,
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
    global_batch_blocks: int | None = flag(None, "blocks per optimizer step, instead of --global_batch_tokens")
    max_tokens: int | None = flag(None, "length of the run in tokens, instead of --max_steps or --num_train_epochs")
    phases: list[PhaseArguments] = flag(
        [],
        "phases of the run, each with its name, data sets, share of the tokens and schedule, instead of --dataset; "
        "for recipes",
        adds_up=True,
        read=read_phase,
    )
    document_masking: bool = flag(False, "no attention across documents; positions start at 0 in each")
    ignore_first_token: bool = flag(False, "ignore the loss of each document's first token")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        raise_problems(phases_problems(self.phases))

    @property
    def datasets(self) -> list[list[str]]:
        """The data sets of each phase, or of the run as its only one."""
        return [phase.dataset for phase in self.phases] or [self.dataset]

    @property
    def has_global_batch(self) -> bool:
        """Whether gradient accumulation follows from the global batch."""
        return self.global_batch_tokens is not None or self.global_batch_blocks is not None

    @property
    def is_synthetic(self) -> bool:
        """Whether random ids are read instead of data."""
        return self.dataset == ["synthetic"]


@dataclass(frozen=True)
class ParentModel:
    """A model from whose weights a run starts: of --weights, or of --model of finetune.py.

    `place` is that flag with its value, as errors begin; `name` is its name for people, `run_name` that of a run which
    is named after it. `tokenizer_dir` is None where the model has no tokenizer.json; `only_shards`: its weights are
    ZeRO shards.
    """

    folder: str
    place: str
    name: str
    run_name: str
    tokenizer_dir: str | None
    only_shards: bool = False


@dataclass(frozen=True)
class PretrainArguments:
    """A complete command of pretrain.py; `trainer` has the flags of the Trainer over our defaults.

    With a `parent`, which is found after the flags were read, a run starts from its weights instead of random ones.
    """

    model: ModelArguments
    data: DataArguments
    optimization: OptimizationArguments
    durability: DurabilityArguments
    observability: ObservabilityArguments
    plan: PlanArguments
    trainer: dict[str, Any]
    parent: ParentModel | None = None
    choice: Mapping[str, Any] | None = None  # of --deepspeed auto, as run.json has it

    @property
    def model_name(self) -> str:
        """The model by the name that people know."""
        return self.model.model if self.parent is None else self.parent.name

    @property
    def chooses_deepspeed(self) -> bool:
        """Whether the plan chooses the DeepSpeed config, and what else is left open."""
        return self.trainer["deepspeed"] == AUTO

    @property
    def finds_micro_batch(self) -> bool:
        """Whether the largest --per_device_train_batch_size that fits is found by trial steps."""
        return self.trainer["per_device_train_batch_size"] == AUTO


def parse_pretrain_arguments(description: str, argv: Sequence[str]) -> PretrainArguments:
    """Read recipe and flags.

    Raises:
        UserError: with all problems at once.
    """
    data = replace(dataclass_group("Data", DataArguments), build=_data_arguments)
    groups = [dataclass_group("Model", ModelArguments), data, *run_groups()]
    arguments = PretrainArguments(*parse_recipe(description, groups, argv))
    check_together(arguments)
    return arguments


def _data_arguments(values: dict[str, Any]) -> DataArguments:
    if values.get("global_batch_blocks") is not None:  # instead of the default
        values = {**values, "global_batch_tokens": None}
    return DataArguments(**values)
