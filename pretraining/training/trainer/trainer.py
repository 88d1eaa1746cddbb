"""The Trainer with this suite's data, loss, schedule and evaluation; the loop, ZeRO-3 and checkpoints are its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from pretraining.errors import UserError
from pretraining.runs.tracking.reporters import Reporters
from pretraining.system.processes import ignore_stop_signals
from pretraining.training.checkpoint.checkpointing import CheckpointingTrainer
from pretraining.training.config.run_config import RunConfig
from pretraining.training.data.batch import Batch, model_inputs
from pretraining.training.data.dataset import MixedBlocks
from pretraining.training.data.loader import BlockLoader, WorkerLoader
from pretraining.training.data.splits import TrainingData
from pretraining.training.metrics.evaluation import EvaluationAbandoned, EvaluationBlocks, evaluate_blocks
from pretraining.training.metrics.hardware_metrics import MachineFigures
from pretraining.training.metrics.step_metrics import StepMetrics
from pretraining.training.metrics.throughput import ThroughputMeter
from pretraining.training.model.loss import TokenLosses, token_losses
from pretraining.training.model.sequence_parallel import collate_parts
from pretraining.training.optim.optimizers import group_settings, make_optimizer
from pretraining.training.trainer.figures import TrainingFigures


class PretrainingTrainer(CheckpointingTrainer):
    """Reads blocks in their order, computes the loss by token, and tells exact figures by source."""

    reporters: Reporters

    def __init__(
        self, plan: RunConfig, data: TrainingData, *, meter: ThroughputMeter, **trainer_arguments: Any
    ) -> None:
        super().__init__(meter=meter, train_dataset=data.train, eval_dataset=data.validation, **trainer_arguments)
        self._loss_shifts_labels = False  # they come shifted, and the Trainer counts them
        self.plan = plan
        self.data = data
        share = plan.batch.sequence_parallel_size
        self.collate = partial(collate_parts, rank=self.args.process_index % share, size=share)
        threshold = plan.arguments.optimization.spike_threshold
        self.watch = StepMetrics(
            sources=data.sources, spike_threshold=threshold, device=self.args.device, has_same_data=plan.has_same_data
        )
        self.add_callback(self.watch)
        self.figures = TrainingFigures(plan, self.watch, meter, MachineFigures(self.args.device))
        self.loader = BlockLoader(
            data.train,
            data.stream,
            plan.batch,
            num_blocks=plan.num_consumed(plan.num_steps),
            collate_fn=self.collate,
            group=self.args.process_index // plan.batch.sequence_parallel_size,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )
        # Their raw dictionaries and bars would stand between the lines of the metrics log.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    @property
    def has_loss_tiles(self) -> bool:
        """Whether the model itself makes the losses, tile by tile."""
        return self.plan.arguments.model.loss_tiles is not None

    @property
    def in_one_row(self) -> bool:
        """Whether isolated documents are given to attention in one row, as flash attention wants them."""
        is_flash = self.plan.arguments.model.attention_implementation.startswith("flash")
        return is_flash and self.plan.batch.sequence_parallel_size == 1

    def check_zero_stage(self) -> None:
        """Refuse to train without ZeRO-3; some launchers lose the config without a word."""
        engine = self.model_wrapped
        stage = engine.zero_optimization_stage() if isinstance(engine, DeepSpeedEngine) else None
        if stage != 3:
            raise UserError(
                f"--deepspeed: ZeRO stage 3 is not on (found {stage}); start with `deepspeed pretrain.py`, torchrun, "
                "mpirun or python3, not with accelerate launch"
            )

    def get_train_dataloader(self) -> BlockLoader:
        """Micro batches up to the end of the run, in its order."""
        return self.loader

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that --optim names."""
        flags = self.plan.arguments.optimization
        self.optimizer: torch.optim.Optimizer = make_optimizer(
            flags.optim, self.args, self.model, weight_decay_on_norms=flags.weight_decay_on_norms
        )
        self._group_settings = group_settings(self.optimizer)
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the plan."""
        self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler = self.plan.schedule.torch_scheduler(self.optimizer)
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            # A checkpoint has the settings that it was saved with, and the flags of this run decide.
            for group, settings in zip(self.optimizer.param_groups, self._group_settings, strict=True):
                group |= settings
            self.plan.schedule.put_into(self.lr_scheduler, num_done=self.lr_scheduler.last_epoch)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """A micro batch on the device, copied while the GPU computes: the Trainer's own copy waits for it."""
        return {name: values.to(self.args.device, non_blocking=True) for name, values in inputs.items()}

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """The tokens that all processes predict in a step: counted, and gathered, only where blocks differ in it."""
        if self.plan.predicts_alike:
            return torch.tensor(self.plan.batch.blocks * (self.plan.batch.block_length - 1), device=device)
        return super()._get_num_items_in_batch(batch_samples, device)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro batches of a step; while they are waited for, the GPU has nothing to do."""
        with self.meter.times.part("data"):
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum of the token losses over the number of tokens that all processes predict in this step."""
        tokens = self.token_losses(model, inputs, in_tiles=self.has_loss_tiles)
        self.watch.add(tokens, inputs)
        # DeepSpeed takes the mean of the gradients over the processes, and this must be their sum.
        return tokens.loss_sum * self.accelerator.num_processes / num_items_in_batch

    def token_losses(self, model: torch.nn.Module, batch: Batch, *, in_tiles: bool) -> TokenLosses:
        """The losses of a micro batch; a model with a tiled loss makes them itself, of labels of its inputs' shape."""
        inputs = model_inputs(batch, in_one_row=self.in_one_row)
        labels = {"labels": batch["labels"].view(1, -1) if self.in_one_row else batch["labels"]} if in_tiles else {}
        return token_losses(model(**inputs, **labels), batch["labels"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Make a training record exact and whole before it goes to any reporter."""
        if "train_runtime" in logs:
            return  # the Trainer's summary, which is of this start alone
        step = self.state.global_step
        self.state.epoch = self.plan.num_epochs(self.plan.num_consumed(step))
        if "loss" in logs:
            logs |= self.figures.take(step, self.model_wrapped)
        logs.pop("total_flos", None)
        super().log(logs, start_time)
        if "loss" in logs:
            # metrics.jsonl has it. Kept as well, a record a step would grow in the memory of each process, and in
            # trainer_state.json of each checkpoint.
            self.state.log_history.pop()

    def floating_point_ops(self, inputs: Batch) -> int:
        """Nothing: the Trainer would count from partitioned weights, which look empty, and gather that at each log."""
        return 0

    def store_flos(self) -> None:
        """Nothing; see `floating_point_ops`."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without counting the time as training; no figures when the run stops meanwhile."""
        with self.meter.pause("evaluation"):
            try:
                return super().evaluate(*args, **kwargs)
            except EvaluationAbandoned:
                self.control.should_evaluate = False
                return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether to save this as the best, by --save_strategy best; an abandoned evaluation leaves that open."""
        return super()._determine_best_metric(metrics, trial) if metrics else self.control.should_save

    def go_back_to(self, checkpoint: Path, step: int) -> None:
        """Put weights, optimizer, schedule, random state and step back to those of a checkpoint, on every process."""
        self.saver.wait()
        self.load(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self.state.global_step = step
        self.state.log_history = [record for record in self.state.log_history if record["step"] <= step]
        self._tr_loss.zero_()
        self._globalstep_last_logged = step
        self.meter.go_back(step)
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self.control.should_training_stop = False

    def get_eval_dataloader(self, eval_dataset: MixedBlocks | None = None) -> DataLoader:
        """Batches in which every process has the same number of blocks, without counting one twice."""
        size, share = self.args.per_device_eval_batch_size, self.plan.batch.sequence_parallel_size
        num_groups = self.plan.batch.num_groups
        chosen = self.data.validation if eval_dataset is None else eval_dataset
        assert chosen is not None, "nothing is evaluated without a block"
        blocks = EvaluationBlocks(chosen, text_bytes=self.data.text_bytes, multiple=size * num_groups)
        first = self.args.process_index // share * size
        numbers = range(0, len(blocks), size * num_groups)
        return WorkerLoader(
            blocks,
            batch_sampler=(range(number + first, number + first + size) for number in numbers),  # no list of them all
            num_workers=self.args.dataloader_num_workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # the seeds of workers must not move the random state of dropout
            worker_init_fn=ignore_stop_signals,
        )

    def _announced(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of an evaluation, each of which callbacks hear of."""
        for batch in batches:
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            yield batch

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Exact figures over all tokens, in place of the Trainer's mean over micro batches."""
        model = self.model_wrapped
        model.eval()
        with self.compute_loss_context_manager():
            figures = evaluate_blocks(
                partial(self.token_losses, model, in_tiles=self.has_loss_tiles),
                self._announced(dataloader),
                sources=self.data.sources,
                device=self.args.device,
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))


class RunStart(TrainerCallback):
    """Looks at the engine that the Trainer really made, and starts to measure."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin."""
        self._trainer.check_zero_stage()
        self._trainer.meter.start(state.global_step)
