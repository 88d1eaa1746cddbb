"""The resolved configuration of a run, decided and checked before the processes join and anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.arguments.phases import phase_ends
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.errors import UserError
from pretraining.planning.fit import GradientType
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import MachineSpec, TrainingLayout
from pretraining.planning.suggestions import check_fits
from pretraining.runs.record_file import read_run_record, recorded_data
from pretraining.runs.run_folder import is_run_folder
from pretraining.system.files import sha256_of
from pretraining.training.config.early_checks import check_blocks, effective_resume_mode, run_folder
from pretraining.training.config.layout import resolve_layout, resolve_setup, smallest_machine
from pretraining.training.config.resume import ResumePoint, find_resume_point
from pretraining.training.config.trainer_arguments import Precision, choose_precision
from pretraining.training.data.loader import BlockStream
from pretraining.training.data.order import WINDOW
from pretraining.training.data.phases import PhaseOrder, RecordedOrder, RunOrder, chain_orders, plan_orders
from pretraining.training.distributed.process_group import check_num_processes, has_gpu
from pretraining.training.model.build import load_model_config
from pretraining.training.model.compile import Compilation
from pretraining.training.model.fp8 import check_fp8
from pretraining.training.model.weights import initial_weights
from pretraining.training.optim.optimizers import prepare_optimizer
from pretraining.training.optim.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class RunConfig:
    """Everything that is known about a run before it starts, in the order in which it is decided."""

    arguments: PretrainArguments
    run_dir: Path
    # 1. The data
    mixture: Mixture
    planned: tuple[PhaseOrder, ...]  # of each phase, as if it were the only one
    manifests: tuple[str, ...]  # sha256 of the manifest.json of each block store
    # 2. The machine and the batch
    config: LlamaConfig
    ds_config: dict[str, Any]
    machine: MachineSpec
    batch: GlobalBatch
    # 3. The start, and what a run that is resumed keeps
    resume: str
    start: ResumePoint
    has_same_data: bool  # the stores and their shares are those with which the checkpoint was saved
    initial_weights: Mapping[str, str] | None  # hashes of the files of weights to start from; None for fresh ones
    num_steps: int
    phase_ends: tuple[int, ...]  # the last step of each phase
    schedule: Schedule
    precision: Precision
    compilation: Compilation
    gradient_type: GradientType
    layout: TrainingLayout

    def num_consumed(self, step: int) -> int:
        """Blocks consumed at the end of a step; steps before the start may have had another size."""
        return self.start.num_blocks + (step - self.start.step) * self.batch.blocks

    @cached_property
    def order(self) -> RunOrder:
        """The order of the blocks from the start on; the folder may resume from another checkpoint than was planned."""
        before = self.start.blocks_by_store
        keys = {manifest: number for number, manifest in enumerate(before or ())}
        saved = self.start.order or RecordedOrder(0, [], keys)
        if self.start.order is None and self.has_same_data:
            fresh = chain_orders(self.planned[:1], [0], start=0, read={}, saved=None)
            before, saved = before or fresh.blocks_by_store(self.start.num_blocks), fresh.orders[0].record()
        firsts = [0, *map(self.num_consumed, self.phase_ends[:-1])]
        start, skipped = self.start.num_blocks, self.start.skipped
        return chain_orders(self.planned, firsts, start=start, read=before or {}, saved=saved, skipped=skipped)

    @property
    def has_changed_phases(self) -> bool:
        """Whether the last step before the start read other data than this run has for it."""
        begins_anew = self.order.orders[0].order.first == self.start.num_blocks
        return self.start.order is not None and begins_anew

    def stream(self) -> BlockStream:
        """The blocks of the run; those before the start may be others."""
        return BlockStream(self.order, list(self.start.skipped))

    def blocks_by_store(self, num_blocks: int) -> dict[str, int]:
        """Count the first `num_blocks` blocks of the run by store, the sha256 of its manifest."""
        return dict(self.order.blocks_by_store(num_blocks))

    def epochs_by_source(self, num_blocks: int) -> dict[str, float]:
        """Epochs over each source of a mixture after `num_blocks` blocks, by name of the metric."""
        if len(self.mixture.parts) == 1:
            return {}
        read = self.order.blocks_by_store(num_blocks)
        sizes = zip(self.mixture.parts, self.manifests, self.mixture.num_blocks("train"), strict=True)
        return {f"epoch/{part.source}": read[manifest] / size for part, manifest, size in sizes}

    def num_epochs(self, num_blocks: int) -> float:
        """Epochs over the present data after `num_blocks` blocks."""
        sizes = dict(zip(self.manifests, self.mixture.num_blocks("train"), strict=True))
        read = self.order.blocks_by_store(num_blocks)
        return sum(read[manifest] for manifest in sizes) / sum(sizes.values())

    @property
    def shares(self) -> list[float]:
        """The share of the run's blocks of each store."""
        if self.mixture.phases:
            return [part.weight for part in self.mixture.parts]
        return [share / WINDOW for share in self.planned[0].order.blocks_per_window]

    def phase_of(self, step: int) -> str | None:
        """The name of the phase of a step; None without phases."""
        phases = self.arguments.data.phases
        ends = zip(phases, self.phase_ends, strict=False)  # one end of a run without phases
        return next((phase.name for phase, end in ends if step <= end), phases[-1].name) if phases else None

    @property
    def predicts_alike(self) -> bool:
        """Whether each block has the same number of predicted tokens: none is padding and none is masked."""
        splits = [part.store.manifest.splits["train"] for part in self.mixture.parts]
        is_masked = self.arguments.data.ignore_first_token or self.mixture.origin.chat_template is not None
        return not is_masked and not any(split.num_padding_tokens for split in splits)

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps whose checkpoints are kept: before a decay of wsd, to extend the run, and the ends of phases."""
        return tuple(dict.fromkeys([*self.schedule.stable_steps, *self.phase_ends[:-1]]))


def resolve_run_config(arguments: PretrainArguments, mixture: Mixture) -> RunConfig:
    """Decide what the run is, once `check_inputs` has checked its files; nothing is loaded.

    Raises:
        UserError: for whatever would make the run fail or be another one than was asked for.
    """
    trainer = arguments.trainer
    check_num_processes()
    run_dir = run_folder(arguments)

    # 1. The data
    data_seed = trainer.get("data_seed")
    manifests = tuple(sha256_of(part.store.folder / MANIFEST_NAME) for part in mixture.parts)
    planned = plan_orders(mixture, manifests, seed=trainer["seed"] if data_seed is None else data_seed)
    planned = planned[: max(1, len(arguments.data.phases))]  # --profile_plan has the first phase only

    # 2. The machine and the batch
    config = load_model_config(arguments.model, mixture.origin)
    machine = smallest_machine(seconds=trainer["ddp_timeout"])
    setup = resolve_setup(arguments, config, machine, block_length=mixture.origin.block_length)

    # 3. The start, and what a run that is resumed keeps
    resume = effective_resume_mode(run_dir, arguments.durability.resume)
    start, evaluates = find_resume_point(run_dir, resume), trainer["eval_strategy"] != "no"
    is_synthetic, resumes = arguments.data.is_synthetic, start.checkpoint is not None
    check_blocks(mixture, setup.batch, is_synthetic=is_synthetic, evaluates=evaluates, resumes=resumes)
    recorded = {} if start.checkpoint is None else read_run_record(start.checkpoint.parent)
    identity, flags = recorded.get("identity", {}), recorded.get("arguments", {})
    has_same_data = recorded_data(start.checkpoint) in (None, data_identity(planned, arguments))
    num_steps = resolve_num_steps(arguments, setup.batch, sum(mixture.num_blocks("train")), start)
    assert num_steps is not None, "the number of blocks is known"
    precision = choose_precision(trainer, has_gpu=has_gpu(), recorded=identity.get("precision"))
    resolved = resolve_layout(
        arguments, setup, num_steps=num_steps, precision=precision, was_compiled=flags.get("compile_layers")
    )
    check_fits(resolved.layout, setup.machine, setup.batch, model=arguments.model_name, force=arguments.plan.force)
    prepare_optimizer(arguments.optimization.optim, setup.ds_config)
    if resolved.layout.computes_in_fp8:
        check_fp8(resolved.layout)
    setup.ds_config["data_types"]["grad_accum_dtype"] = resolved.gradient_type.name

    return RunConfig(
        run_dir=run_dir,
        mixture=mixture,
        planned=planned,
        manifests=manifests,
        **vars(setup),
        resume=resume,
        start=start,
        has_same_data=has_same_data,
        initial_weights=initial_weights(arguments, config, _recorded_weights(run_dir, start)),
        num_steps=num_steps,
        phase_ends=resolve_phase_ends(arguments, num_steps, setup.batch, start),
        schedule=make_schedule(arguments, num_steps=num_steps),
        precision=precision,
        **vars(resolved),
    )


def _recorded_weights(run_dir: Path, start: ResumePoint) -> dict[str, str] | None:
    """The hashes of the parent of the run that is resumed, if any."""
    run_dir = run_dir if start.checkpoint is None else start.checkpoint.parent
    return read_run_record(run_dir).get("identity", {}).get("initial_weights") if is_run_folder(run_dir) else None


def data_identity(planned: Sequence[PhaseOrder], arguments: PretrainArguments) -> list[dict[str, Any]]:
    """The block stores of a run, each with its share of the blocks and its phase, if any, as run.json has them."""
    phases = [{"phase": phase.name} for phase in arguments.data.phases] or [{}]
    return [
        {"manifest_sha256": manifest, "blocks_per_1000": share, **phase}
        for order, phase in zip(planned, phases, strict=False)
        for manifest, share in order.data
    ]


def resolve_phase_ends(
    arguments: PretrainArguments, num_steps: int, batch: GlobalBatch, start: ResumePoint
) -> tuple[int, ...]:
    """The last step of each phase, of a run without phases its own.

    Raises:
        UserError: for a phase without a step, and for steps of another size before the start: shares are of steps.
    """
    phases = arguments.data.phases
    if phases and start.num_blocks != start.step * batch.blocks:
        raise UserError(
            f"--phases: {start.checkpoint} has read {start.num_blocks:,} blocks in {start.step:,} steps, now a step "
            f"has {batch.blocks:,}; the shares of phases need steps of one size: use that batch, or --dataset in place "
            "of phases"
        )
    return tuple(phase_ends(phases, num_steps)) or (num_steps,)


def resolve_num_steps(
    arguments: PretrainArguments, batch: GlobalBatch, num_blocks: int | None, start: ResumePoint
) -> int | None:
    """Optimizer steps of the run, including those before the start: from --max_steps, --max_tokens or the epochs.

    None where they follow from the number of blocks, and that is unknown.
    """
    if arguments.trainer.get("max_steps", -1) > 0:
        return arguments.trainer["max_steps"]
    if arguments.data.max_tokens is not None:
        num_tokens = arguments.data.max_tokens - start.num_blocks * batch.block_length
        return start.step + max(0, math.ceil(num_tokens / batch.tokens))
    if num_blocks is None:
        return None
    wanted = arguments.trainer["num_train_epochs"] * num_blocks - start.num_blocks
    return max(1, start.step + math.floor(wanted / batch.blocks + 1e-6))
