"""The Trainer with the settings of this suite: exact evaluation, honest throughput, one record a logging step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from deepspeed import DeepSpeedEngine
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from pretraining.cli.errors import UserError
from pretraining.machine.throughput import ThroughputMeter
from pretraining.training.block_dataset import BlockDataset
from pretraining.training.evaluation import EvaluationBlocks, evaluate_blocks
from pretraining.training.global_batch import GlobalBatch

Precision = Literal["bf16", "fp16", "fp32"]


class PretrainingTrainer(Trainer):
    """Adds throughput to the log and evaluates each block exactly once; training itself is the Trainer's."""

    def __init__(
        self,
        *,
        meter: ThroughputMeter,
        metrics_log: TrainerCallback,
        test_dataset: BlockDataset | None,
        **trainer_arguments: Any,
    ) -> None:
        super().__init__(callbacks=[_RunStart(self), metrics_log], **trainer_arguments)
        self.meter = meter
        self.test_dataset = test_dataset
        # Their raw dictionaries and bars would stand between the lines of the metrics log.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def check_zero_stage(self) -> None:
        """Refuse to train without ZeRO-3; some launchers lose the config without a word."""
        engine = self.model_wrapped
        stage = engine.zero_optimization_stage() if isinstance(engine, DeepSpeedEngine) else None
        if stage != 3:
            raise UserError(
                f"--deepspeed: ZeRO stage 3 is not on (found {stage}); start with `deepspeed pretrain.py`, torchrun, "
                "mpirun or python3, not with accelerate launch"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens, speed and time left to a training record before it goes to every reporter."""
        if "loss" in logs:
            step = self.state.global_step
            throughput = self.meter.read(step, max_steps=self.state.max_steps)
            logs["tokens"] = step * self.meter.tokens_per_step
            if throughput is not None:
                logs["tokens_per_second_per_gpu"] = throughput.tokens_per_second_per_gpu
                logs["seconds_left"] = throughput.seconds_left
                if throughput.mfu is not None:
                    logs["mfu"] = throughput.mfu
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without counting the time as training."""
        with self.meter.pause():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.meter.pause():
            super()._save_checkpoint(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: BlockDataset | None = None) -> Sampler:
        """Whole global batches of blocks in random order; what is left of an epoch waits for the next draw.

        So every step has the same number of tokens, and the tokens in the log are counted, not estimated.
        """
        blocks_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        num_blocks = len(self.train_dataset) // blocks_per_step * blocks_per_step
        return RandomSampler(self.train_dataset, num_samples=num_blocks)

    def get_eval_dataloader(self, eval_dataset: BlockDataset | None = None) -> DataLoader:
        """Batches in which every process has the same number of blocks, without counting one twice."""
        self.__dict__.pop("_eval_dataloaders", None)  # the Trainer keeps one loader for all: test would be validation
        blocks = eval_dataset if eval_dataset is not None else self.eval_dataset
        multiple = self.args.per_device_eval_batch_size * self.args.world_size
        return super().get_eval_dataloader(EvaluationBlocks(blocks, multiple=multiple))

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Exact mean loss over all tokens, in place of the Trainer's mean over micro batches."""
        model = self.model_wrapped
        model.eval()
        with self.compute_loss_context_manager():
            figures = evaluate_blocks(model, dataloader, device=self.args.device)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))


class _RunStart(TrainerCallback):
    """Looks at the engine that the Trainer really made, and starts to measure."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.check_zero_stage()
        self._trainer.meter.start(state.global_step)


def make_training_arguments(
    flags: dict[str, Any],
    *,
    run_dir: Path,
    ds_config: dict[str, Any],
    batch: GlobalBatch,
    precision: Precision,
    has_gpu: bool,
) -> TrainingArguments:
    """The Trainer's arguments: its flags, and what follows from run folder, global batch and machine.

    Raises:
        UserError: for a combination that the Trainer refuses.
    """
    derived = {
        "output_dir": str(run_dir),
        "deepspeed": copy.deepcopy(ds_config),  # the Trainer fills in what is "auto"
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "use_cpu": not has_gpu,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
    }
    try:
        return TrainingArguments(**{**flags, **derived})
    except ValueError as error:
        raise UserError(f"Trainer flags: {' '.join(str(error).split())}") from None


def choose_precision(flags: dict[str, Any], *, has_gpu: bool) -> Precision:
    """bf16 or fp16 as asked, otherwise bf16 where the hardware has its instructions, and fp32 where not.

    Without them bf16 is emulated: on such a CPU a step took 10.1 s in place of 0.54 s in fp32.
    """
    if flags.get("fp16"):
        if not has_gpu:
            raise UserError("--fp16: needs a GPU; leave it out, this machine trains in fp32")
        return "fp16"
    if flags["bf16"] is not None:
        return "bf16" if flags["bf16"] else "fp32"
    if has_gpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
