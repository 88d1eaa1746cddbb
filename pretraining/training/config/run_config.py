"""The resolved configuration of a run, decided and checked before the processes join and anything is loaded."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.planning.fit import GradientType
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import MachineSpec, TrainingLayout
from pretraining.planning.suggestions import check_fits
from pretraining.runs.record_file import read_run_record
from pretraining.system.files import sha256_of, xxh3_of
from pretraining.training.config.early_checks import check_blocks, effective_resume_mode, run_folder
from pretraining.training.config.layout import resolve_layout, resolve_setup, this_machine
from pretraining.training.config.resume import ResumePoint, find_resume_point
from pretraining.training.config.trainer_arguments import Precision, choose_precision
from pretraining.training.data.loader import BlockStream
from pretraining.training.data.order import BlockOrder, make_order
from pretraining.training.distributed.process_group import check_num_processes, has_gpu
from pretraining.training.model.build import load_model_config
from pretraining.training.model.compile import Compilation
from pretraining.training.model.fp8 import check_fp8
from pretraining.training.optim.optimizers import prepare_optimizer
from pretraining.training.optim.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class RunConfig:
    """Everything that is known about a run before it starts, in the order in which it is decided."""

    arguments: PretrainArguments
    run_dir: Path
    # 1. The data
    mixture: Mixture
    order: BlockOrder
    manifests: tuple[str, ...]  # sha256 of the manifest.json of each block store
    # 2. The machine and the batch
    config: LlamaConfig
    ds_config: dict[str, Any]
    machine: MachineSpec
    batch: GlobalBatch
    # 3. The start, and what a run that is resumed keeps
    resume: str
    start: ResumePoint
    has_same_data: bool  # the stores and their shares are those of the run's last start
    initial_weights: Mapping[str, str] | None  # hashes of the files of weights to start from; None for fresh ones
    num_steps: int
    schedule: Schedule
    precision: Precision
    compilation: Compilation
    gradient_type: GradientType
    layout: TrainingLayout

    def num_consumed(self, step: int) -> int:
        """Blocks consumed at the end of a step; steps before the start may have had another size."""
        return self.start.num_blocks + (step - self.start.step) * self.batch.blocks

    def stream(self) -> BlockStream:
        """The blocks of the run, from the first."""
        return BlockStream(self.order)

    def blocks_by_store(self, num_blocks: int) -> dict[str, int]:
        """Count the first `num_blocks` blocks of the run by store, the sha256 of its manifest.

        Those before the start may be of other stores, or in other shares (--allow_changed data).
        """
        until_start = self._consumed(self.start.num_blocks)
        before = self.start.blocks_by_store
        if before is None:
            before = until_start if self.has_same_data else {}
        since = self._consumed(num_blocks)
        since.subtract(until_start)
        since.update(before)
        return dict(since)

    def _consumed(self, num_blocks: int) -> Counter[str]:
        found: Counter[str] = Counter()
        for manifest, count in zip(self.manifests, self.order.num_consumed(num_blocks), strict=True):
            found[manifest] += count
        return found

    def epochs_by_source(self, num_blocks: int) -> dict[str, float]:
        """Epochs over each source of a mixture after `num_blocks` blocks, by name of the metric."""
        if len(self.mixture.parts) == 1:
            return {}
        read = self.blocks_by_store(num_blocks)
        sizes = zip(self.mixture.parts, self.manifests, self.order.num_blocks, strict=True)
        return {f"epoch/{part.source}": read[manifest] / size for part, manifest, size in sizes}

    def num_epochs(self, num_blocks: int) -> float:
        """Epochs over the present data after `num_blocks` blocks."""
        sizes = dict(zip(self.manifests, self.order.num_blocks, strict=True))
        read = self.blocks_by_store(num_blocks)
        return sum(read[manifest] for manifest in sizes) / sum(sizes.values())

    @property
    def predicts_alike(self) -> bool:
        """Whether each block has the same number of predicted tokens: none is padding and none is masked."""
        splits = [part.store.manifest.splits["train"] for part in self.mixture.parts]
        is_masked = self.arguments.data.ignore_first_token or self.mixture.origin.chat_template is not None
        return not is_masked and not any(split.num_padding_tokens for split in splits)

    @property
    def last_stable_step(self) -> int | None:
        """The step of wsd whose checkpoint is kept, from which the run can be extended."""
        return self.schedule.last_stable_step if self.schedule.shape == "wsd" else None


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
    order = make_order(mixture, seed=trainer["seed"] if data_seed is None else data_seed)
    manifests = tuple(sha256_of(part.store.folder / MANIFEST_NAME) for part in mixture.parts)

    # 2. The machine and the batch
    config = load_model_config(arguments.model, mixture.origin)
    setup = resolve_setup(arguments, config, this_machine(), block_length=mixture.origin.block_length)
    check_blocks(mixture, setup.batch, evaluates=trainer["eval_strategy"] != "no")

    # 3. The start, and what a run that is resumed keeps
    resume = effective_resume_mode(run_dir, arguments.durability.resume)
    start = find_resume_point(run_dir, resume)
    recorded = {} if start.checkpoint is None else read_run_record(start.checkpoint.parent)
    identity, flags = recorded.get("identity", {}), recorded.get("arguments", {})
    has_same_data = start.checkpoint is None or identity.get("data") == data_identity(manifests, order)
    num_steps = resolve_num_steps(arguments, setup.batch, sum(mixture.num_blocks("train")), start)
    assert num_steps is not None, "the number of blocks is known"
    precision = choose_precision(trainer, has_gpu=has_gpu(), recorded=identity.get("precision"))
    resolved = resolve_layout(
        arguments, setup, num_steps=num_steps, precision=precision, was_compiled=flags.get("compile_layers")
    )
    check_fits(resolved.layout, setup.machine, setup.batch, model=arguments.model.model, force=arguments.plan.force)
    prepare_optimizer(arguments.optimization.optim, setup.ds_config)
    if resolved.layout.computes_in_fp8:
        check_fp8(resolved.layout)
    setup.ds_config["data_types"]["grad_accum_dtype"] = resolved.gradient_type.name

    return RunConfig(
        run_dir=run_dir,
        mixture=mixture,
        order=order,
        manifests=manifests,
        **vars(setup),
        resume=resume,
        start=start,
        has_same_data=has_same_data,
        initial_weights=_hashes_of(arguments.weights),
        num_steps=num_steps,
        schedule=make_schedule(arguments, num_steps=num_steps),
        precision=precision,
        **vars(resolved),
    )


def data_identity(manifests: Sequence[str], order: BlockOrder) -> list[dict[str, Any]]:
    """The block stores of a run, each with its share of the blocks, as run.json has them."""
    shares = zip(manifests, order.blocks_per_window, strict=True)
    return [{"manifest_sha256": manifest, "blocks_per_1000": share} for manifest, share in shares]


def _hashes_of(folder: str | None) -> dict[str, str] | None:
    if folder is None:
        return None
    return {path.name: xxh3_of(path) for path in sorted(Path(folder).glob("*.safetensors"))}


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
