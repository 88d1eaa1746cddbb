"""What a run is: decided and checked before the processes join and anything is loaded."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.deepspeed_config import agree_with_flags, load_ds_config
from pretraining.data.mixture import Mixture
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.planning.fit import GradientType, choose_gradient_type, resolved_settings
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.machine import MachineSpec
from pretraining.planning.suggestions import check_fits
from pretraining.runs.record_file import read_run_record
from pretraining.system.files import sha256_of, xxh3_of
from pretraining.training.config.batch import plan_batch
from pretraining.training.config.data_checks import check_blocks, make_order
from pretraining.training.config.early_checks import effective_resume_mode, run_folder
from pretraining.training.config.machine import this_machine
from pretraining.training.config.memory_layout import make_layout, plan_layers
from pretraining.training.config.resume import ResumePoint, find_resume_point
from pretraining.training.config.trainer_arguments import Precision, choose_precision
from pretraining.training.data.loader import BlockStream
from pretraining.training.data.order import BlockOrder
from pretraining.training.distributed.process_group import check_num_processes, has_gpu
from pretraining.training.model.build import load_model_config
from pretraining.training.model.compile import Compilation
from pretraining.training.model.fields import Heads
from pretraining.training.model.fp8 import check_fp8
from pretraining.training.optim.optimizers import prepare_optimizer
from pretraining.training.optim.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class RunConfig:
    """Everything that is known about a run before it starts.

    `manifests` are the sha256 of the manifest.json of each block store; `has_same_data` says that they and their shares
    are those of the run's last start. `initial_weights` are the hashes of the files of weights that it begins with,
    None when they are fresh.
    """

    arguments: PretrainArguments
    mixture: Mixture
    order: BlockOrder
    manifests: tuple[str, ...]
    has_same_data: bool
    run_dir: Path
    resume: str
    start: ResumePoint
    ds_config: dict[str, Any]
    config: LlamaConfig
    batch: GlobalBatch
    num_steps: int
    schedule: Schedule
    precision: Precision
    gradient_type: GradientType
    compilation: Compilation
    layout: TrainingLayout
    machine: MachineSpec
    initial_weights: Mapping[str, str] | None

    def num_consumed(self, step: int) -> int:
        """Blocks that are consumed at the end of a step; until the start, steps may have had another size."""
        return self.start.num_blocks + (step - self.start.step) * self.batch.blocks

    def stream(self) -> BlockStream:
        """The blocks one after another, from the first."""
        return BlockStream(self.order)

    def blocks_by_store(self, num_blocks: int) -> dict[str, int]:
        """How many of the first `num_blocks` blocks of the run were of each block store, by the hash of its manifest.

        Until the start they may have been of other stores, or in other shares (--allow_changed data).
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
        """How often each source of a mixture was read after `num_blocks` blocks, as keys of the log."""
        if len(self.mixture.parts) == 1:
            return {}
        read = self.blocks_by_store(num_blocks)
        sizes = zip(self.mixture.parts, self.manifests, self.order.num_blocks, strict=True)
        return {f"epoch/{part.source}": read[manifest] / size for part, manifest, size in sizes}

    def num_epochs(self, num_blocks: int) -> float:
        """How often the present data was read after `num_blocks` blocks."""
        sizes = dict(zip(self.manifests, self.order.num_blocks, strict=True))
        read = self.blocks_by_store(num_blocks)
        return sum(read[manifest] for manifest in sizes) / sum(sizes.values())

    @property
    def predicts_alike(self) -> bool:
        """Whether the same number of tokens is predicted in every block: none is padding and none is masked."""
        splits = [part.store.manifest.splits["train"] for part in self.mixture.parts]
        is_masked = self.arguments.data.ignore_first_token or self.mixture.origin.chat_template is not None
        return not is_masked and not any(split.num_padding_tokens for split in splits)

    @property
    def last_stable_step(self) -> int | None:
        """The step of wsd whose checkpoint is kept, from which the run can be made longer."""
        return self.schedule.last_stable_step if self.schedule.shape == "wsd" else None


def resolve_run_config(arguments: PretrainArguments, mixture: Mixture) -> RunConfig:
    """Decide what the run is, once `check_inputs` has seen its files; nothing is loaded.

    Raises:
        UserError: for whatever would make the run fail or be another one than was asked for.
    """
    trainer = arguments.trainer
    check_num_processes()
    run_dir = run_folder(arguments)
    ds_config = load_ds_config(trainer["deepspeed"])
    config = load_model_config(arguments.model, mixture.origin)
    machine = this_machine()
    heads = Heads(config.num_attention_heads, config.num_key_value_heads)
    batch = plan_batch(arguments, heads, mixture.origin.block_length, machine.num_processes)
    resume = effective_resume_mode(run_dir, arguments.durability.resume)
    start = find_resume_point(run_dir, resume)
    num_steps = resolve_num_steps(arguments, batch, sum(mixture.num_blocks("train")), start)
    assert num_steps is not None, "the number of blocks is known"
    precision = choose_precision(trainer, has_gpu=has_gpu(), recorded=_recorded(start, "identity", "precision"))
    was = _recorded(start, "arguments", "compile_layers")
    arguments, compilation = plan_layers(arguments, config, batch, num_steps=num_steps, machine=machine, recorded=was)
    layout = make_layout(arguments, config, ds_config, batch=batch, precision=precision, machine=machine)
    gradient_type = choose_gradient_type(arguments.optimization.grad_accum_dtype, layout, machine)
    layout = replace(layout, grad_accum_dtype=gradient_type.name)
    agree_with_flags(ds_config, resolved_settings(batch, precision, gradient_type), trainer["deepspeed"])
    check_fits(layout, machine, batch, model=arguments.model.model, force=arguments.plan.force)
    check_blocks(mixture, batch, evaluates=trainer["eval_strategy"] != "no")
    data_seed = trainer.get("data_seed")
    order = make_order(mixture, seed=trainer["seed"] if data_seed is None else data_seed)
    manifests = tuple(sha256_of(part.store.folder / MANIFEST_NAME) for part in mixture.parts)
    prepare_optimizer(arguments.optimization.optim, ds_config)
    if layout.computes_in_fp8:
        check_fp8(layout)
    ds_config["data_types"]["grad_accum_dtype"] = gradient_type.name
    return RunConfig(
        arguments=arguments,
        mixture=mixture,
        order=order,
        manifests=manifests,
        has_same_data=_has_same_data(start, data_identity(manifests, order)),
        run_dir=run_dir,
        resume=resume,
        start=start,
        ds_config=ds_config,
        config=config,
        batch=batch,
        num_steps=num_steps,
        schedule=make_schedule(arguments, num_steps=num_steps),
        precision=precision,
        gradient_type=gradient_type,
        compilation=compilation,
        layout=layout,
        machine=machine,
        initial_weights=_hashes_of(arguments.weights),
    )


def data_identity(manifests: Sequence[str], order: BlockOrder) -> list[dict[str, Any]]:
    """The block stores of a run, each with its share of the blocks."""
    shares = zip(manifests, order.blocks_per_window, strict=True)
    return [{"manifest_sha256": manifest, "blocks_per_1000": share} for manifest, share in shares]


def _has_same_data(start: ResumePoint, data: list[dict[str, Any]]) -> bool:
    return start.checkpoint is None or _recorded(start, "identity", "data") == data


def _recorded(start: ResumePoint, section: str, name: str) -> Any:
    """What run.json of the run that is resumed has there, if anything."""
    if start.checkpoint is None:
        return None
    return read_run_record(start.checkpoint.parent).get(section, {}).get(name)


def _hashes_of(folder: str | None) -> dict[str, str] | None:
    if folder is None:
        return None
    return {path.name: xxh3_of(path) for path in sorted(Path(folder).glob("*.safetensors"))}


def resolve_num_steps(
    arguments: PretrainArguments, batch: GlobalBatch, num_blocks: int | None, start: ResumePoint
) -> int | None:
    """Optimizer steps of the whole run: as asked for, or as many as it takes for the tokens or fit into the epochs.

    None where only the number of blocks could tell, and that is not known.
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
