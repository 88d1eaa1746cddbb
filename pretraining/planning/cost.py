"""Disk space, time, energy and price of a run."""

from dataclasses import dataclass

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.arguments.run import PlanArguments
from pretraining.planning.flops import flops_per_token, num_parameters
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.model_states import model_states
from pretraining.planning.speed import Speeds, tokens_per_second_per_gpu
from pretraining.system.gpus import GpuType

BILLION = 10**9


@dataclass(frozen=True)
class DiskUsage:
    """Checkpoints and exported models of a run on disk."""

    checkpoint_bytes: int
    num_checkpoints: int | None  # None where all are kept
    keeps_stable: bool  # the checkpoint of wsd from which the run can be extended
    num_phase_ends: int  # the checkpoints at the ends of phases
    num_exports: int
    export_bytes: int

    @property
    def checkpoints_bytes(self) -> int:
        """Bytes of all checkpoints while another one is written."""
        return self.checkpoint_bytes * ((self.num_checkpoints or 1) + self.keeps_stable + self.num_phase_ends + 1)

    @property
    def exports_bytes(self) -> int:
        """Bytes of all exported models."""
        return self.num_exports * self.export_bytes

    @property
    def checkpoints_description(self) -> str:
        """Describe how many checkpoints are kept."""
        if self.num_checkpoints is None:
            return "2, and one more each --save_steps"
        if self.num_phase_ends:
            return f"{self.num_checkpoints + self.keeps_stable + self.num_phase_ends} and one being written"
        return f"{self.num_checkpoints}{', wsd' if self.keeps_stable else ''} and one being written"


def disk_usage(arguments: PretrainArguments, layout: TrainingLayout, *, num_tokens: int | None) -> DiskUsage:
    """Estimate it from --save_total_limit, wsd, --export and --export_every_tokens."""
    states, flags = model_states(layout), arguments.durability
    model = num_parameters(layout.shape) * layout.weight_bytes
    every = flags.export_every_tokens
    while_training = 0 if every is None or num_tokens is None else num_tokens // every
    saves = arguments.trainer.get("save_strategy", "steps") != "no"
    shards = (states.master_weights + states.moments) * layout.num_processes
    return DiskUsage(
        checkpoint_bytes=shards + model if saves else 0,
        num_checkpoints=max(arguments.trainer["save_total_limit"] or 0, 0) or None,
        keeps_stable=arguments.optimization.lr_scheduler_type == "wsd",
        num_phase_ends=max(0, len(arguments.data.phases) - 1),
        num_exports=while_training + flags.export,
        export_bytes=model,
    )


@dataclass(frozen=True)
class Costs:
    """Time, energy and price of a number of tokens on GPUs of one type at one speed."""

    tokens_per_second_per_gpu: float
    flops_per_token: float
    peak_flops_per_second: float
    num_tokens: int
    tokens_are_known: bool  # otherwise they are a billion
    num_gpus: int
    board_watts: int
    price_per_gpu_hour: float | None

    @property
    def mfu(self) -> float:
        """Share of the peak, recomputation not counted."""
        return self.tokens_per_second_per_gpu * self.flops_per_token / self.peak_flops_per_second

    @property
    def gpu_hours(self) -> float:
        """Hours summed over all GPUs."""
        return self.num_tokens / self.tokens_per_second_per_gpu / 3600

    @property
    def hours(self) -> float:
        """Wall-clock hours of training, without evaluations and checkpoints."""
        return self.gpu_hours / self.num_gpus

    @property
    def kilowatt_hours(self) -> float:
        """Energy of the GPUs alone, at their board power."""
        return self.gpu_hours * self.board_watts / 1000

    @property
    def price(self) -> float | None:
        """Price in the currency of --price_per_gpu_hour."""
        return None if self.price_per_gpu_hour is None else self.gpu_hours * self.price_per_gpu_hour


def plan_costs(
    flags: PlanArguments,
    layout: TrainingLayout,
    batch: GlobalBatch,
    gpu_type: GpuType | None,
    *,
    num_tokens: int | None,
) -> Costs | None:
    """Estimate the costs at --assumed_hfu, of a billion tokens if their number is unknown.

    None where the speed is unknown.
    """
    speed = tokens_per_second_per_gpu(layout, batch, gpu_type, Speeds.of(flags))
    if gpu_type is None or speed is None:
        return None
    return Costs(
        tokens_per_second_per_gpu=speed,
        flops_per_token=flops_per_token(layout.shape, block_length=layout.block_length),
        peak_flops_per_second=gpu_type.peak_flops_per_second,
        num_tokens=BILLION if num_tokens is None else num_tokens,
        tokens_are_known=num_tokens is not None,
        num_gpus=layout.num_processes,
        board_watts=gpu_type.board_watts,
        price_per_gpu_hour=flags.price_per_gpu_hour,
    )
