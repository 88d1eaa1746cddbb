"""What a run takes on disk, in hours, energy and money."""

from dataclasses import dataclass, replace

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.arguments.run import PlanArguments
from pretraining.planning.flops import flops_per_token, num_parameters
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.model_states import model_states
from pretraining.system.gpus import GpuType

BILLION = 10**9


@dataclass(frozen=True)
class DiskUsage:
    """Checkpoints and exported models of a run, as they lie on disk."""

    checkpoint_bytes: int
    num_checkpoints: int | None  # None for all of them, however many
    keeps_stable: bool
    num_exports: int
    export_bytes: int

    @property
    def checkpoints_bytes(self) -> int:
        """Of all that are there while another one is written."""
        return self.checkpoint_bytes * ((self.num_checkpoints or 1) + self.keeps_stable + 1)

    @property
    def exports_bytes(self) -> int:
        """Of all exported models."""
        return self.num_exports * self.export_bytes

    @property
    def said_checkpoints(self) -> str:
        """How many, in words."""
        if self.num_checkpoints is None:
            return "2, and one more each --save_steps"
        return f"{self.num_checkpoints}{', wsd' if self.keeps_stable else ''} and one being written"


def disk_usage(arguments: PretrainArguments, layout: TrainingLayout, *, num_tokens: int | None) -> DiskUsage:
    """By --save_total_limit, wsd, --export and --export_every_tokens."""
    states, flags = model_states(layout), arguments.durability
    model = num_parameters(layout.shape) * layout.weight_bytes
    every = flags.export_every_tokens
    while_training = 0 if every is None or num_tokens is None else num_tokens // every
    saves = arguments.trainer.get("save_strategy", "steps") != "no"
    shards = (states.master_weights + states.moments) * layout.num_processes
    return DiskUsage(
        checkpoint_bytes=shards + model if saves else 0,
        num_checkpoints=max(arguments.trainer["save_total_limit"], 0) or None,
        keeps_stable=arguments.optimization.lr_scheduler_type == "wsd",
        num_exports=while_training + flags.export,
        export_bytes=model,
    )


@dataclass(frozen=True)
class Costs:
    """Time and what grows with it, of a number of tokens on a number of GPUs of a kind at an MFU."""

    mfu: float
    flops_per_token: float
    peak_flops_per_second: float
    num_tokens: int
    tokens_are_known: bool  # otherwise it is a billion
    num_gpus: int
    board_watts: int
    price_per_gpu_hour: float | None

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """What the MFU comes to."""
        return self.mfu * self.peak_flops_per_second / self.flops_per_token

    def at_speed(self, tokens_per_second_per_gpu: float) -> "Costs":
        """The same run at a speed that was measured."""
        return replace(self, mfu=tokens_per_second_per_gpu * self.flops_per_token / self.peak_flops_per_second)

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together."""
        return self.num_tokens / self.tokens_per_second_per_gpu / 3600

    @property
    def hours(self) -> float:
        """From beginning to end, evaluations and checkpoints aside."""
        return self.gpu_hours / self.num_gpus

    @property
    def kilowatt_hours(self) -> float:
        """Of the GPUs alone, at their board power."""
        return self.gpu_hours * self.board_watts / 1000

    @property
    def price(self) -> float | None:
        """In the currency of --price_per_gpu_hour."""
        return None if self.price_per_gpu_hour is None else self.gpu_hours * self.price_per_gpu_hour


def plan_costs(
    flags: PlanArguments, layout: TrainingLayout, kind: GpuType | None, *, num_tokens: int | None
) -> Costs | None:
    """At --assumed_mfu; None for a GPU that is not listed. A billion tokens where their number is not known."""
    if kind is None:
        return None
    return Costs(
        mfu=flags.assumed_mfu,
        flops_per_token=flops_per_token(layout.shape, block_length=layout.block_length),
        peak_flops_per_second=kind.peak_flops_per_second,
        num_tokens=BILLION if num_tokens is None else num_tokens,
        tokens_are_known=num_tokens is not None,
        num_gpus=layout.num_processes,
        board_watts=kind.board_watts,
        price_per_gpu_hour=flags.price_per_gpu_hour,
    )
