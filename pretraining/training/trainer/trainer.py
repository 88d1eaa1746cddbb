"""The Trainer with this suite's data, loss, schedule and evaluation; the training loop is the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from pretraining.planning.evaluation import evaluation_batch
from pretraining.runs.run_folder import read_trainer_state
from pretraining.runs.tracking.reporters import Reporters
from pretraining.system.processes import ignore_stop_signals
from pretraining.training.config.run_config import RunConfig
from pretraining.training.data.batch import Batch, model_inputs
from pretraining.training.data.dataset import Item, MixedBlocks
from pretraining.training.data.loader import BlockLoader, WorkerLoader
from pretraining.training.data.splits import TrainingData
from pretraining.training.metrics.evaluation import EvaluationAbandoned, EvaluationBlocks, evaluate_blocks
from pretraining.training.metrics.hardware_metrics import HardwareMetrics
from pretraining.training.metrics.step_metrics import StepMetrics, callback_state
from pretraining.training.metrics.throughput import ThroughputMeter
from pretraining.training.model.loss import TokenLosses, token_losses
from pretraining.training.model.sequence_parallel import collate_parts
from pretraining.training.optim.optimizers import group_settings, make_optimizer
from pretraining.training.trainer.hf_internals import TrainerInternals, packing_check


class PretrainingTrainer(TrainerInternals):
    """Reads blocks in their order, computes token losses, and logs exact metrics by source."""

    reporters: Reporters
    score_tasks: Callable[[], dict[str, float]]  # the metrics of downstream tasks, for an evaluation of validation

    def __init__(
        self, run_config: RunConfig, data: TrainingData, *, meter: ThroughputMeter, **trainer_arguments: Any
    ) -> None:
        chosen = data.chosen_validation(run_config.arguments.observability.eval_blocks)
        super().__init__(run_config, meter=meter, train_dataset=data.train, eval_dataset=chosen, **trainer_arguments)
        self.data = data
        share = run_config.batch.sequence_parallel_size
        self.collate = partial(collate_parts, rank=self.args.process_index % share, size=share)
        self.step_metrics = StepMetrics(
            sources=data.sources,
            spike_threshold=run_config.arguments.optimization.spike_threshold,
            device=self.args.device,
            has_same_data=run_config.has_same_data,
        )
        self.add_callback(self.step_metrics)
        self.hardware_metrics = HardwareMetrics(self.args.device)
        self.loader = BlockLoader(
            data.train,
            data.stream,
            run_config.batch,
            num_blocks=run_config.num_consumed(run_config.num_steps),
            collate_fn=self.collate,
            group=self.args.process_index // share,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )
        # Their raw dictionaries and bars would be printed between the lines of our log.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    @property
    def has_loss_tiles(self) -> bool:
        """Whether the model itself computes the losses, tile by tile."""
        return self.run_config.arguments.model.loss_tiles is not None

    @property
    def in_one_row(self) -> bool:
        """Whether masked documents are passed to attention as one packed row, which flash kernels need."""
        return not self.run_config.layout.takes_mask and self.run_config.batch.sequence_parallel_size == 1

    def get_train_dataloader(self) -> BlockLoader:
        """The micro batches up to the end of the run, in the order of the stream."""
        return self.loader

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that --optim names."""
        flags = self.run_config.arguments.optimization
        self.optimizer: torch.optim.Optimizer = make_optimizer(
            flags.optim, self.args, self.model, weight_decay_on_norms=flags.weight_decay_on_norms
        )
        self._group_settings = group_settings(self.optimizer)
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> LRScheduler:
        """The schedule of the run."""
        self.lr_scheduler: LRScheduler = self.run_config.schedule.torch_scheduler(self.optimizer)
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro batches of a step; the time until they are there counts as data."""
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
        self.step_metrics.add(tokens, inputs)
        # DeepSpeed averages the gradients over the processes; the step needs their sum.
        return tokens.loss_sum * self.accelerator.num_processes / num_items_in_batch

    def token_losses(self, model: torch.nn.Module, batch: Batch, *, in_tiles: bool) -> TokenLosses:
        """The losses of a micro batch; with tiles, the model computes them from labels of its inputs' shape."""
        num_parts = self.run_config.batch.sequence_parallel_size
        inputs = model_inputs(batch, in_one_row=self.in_one_row, num_parts=num_parts)
        labels = {"labels": batch["labels"].view(1, -1) if self.in_one_row else batch["labels"]} if in_tiles else {}
        with packing_check(is_on=self.run_config.arguments.data.document_masking):
            return token_losses(model(**inputs, **labels), batch["labels"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the exact metrics to a training record before any reporter gets it."""
        if "train_runtime" in logs:
            return  # the Trainer's summary, which covers this start only
        step = self.state.global_step
        self.state.epoch = self.run_config.num_epochs(self.run_config.num_consumed(step))
        if "loss" in logs:
            logs |= self._pop_metrics(step)
        logs.pop("total_flos", None)
        super().log(logs, start_time)
        if "loss" in logs:
            # metrics.jsonl has it. Here, a record per step would fill the memory of each process and
            # trainer_state.json of each checkpoint.
            self.state.log_history.pop()

    def _pop_metrics(self, step: int) -> dict[str, float]:
        """Losses, tokens, speed, memory and time since the last call; called on every process."""
        run, num_blocks = self.run_config, self.run_config.num_consumed(step)
        metrics = self.step_metrics.pop_metrics()
        metrics["tokens"] = num_blocks * run.batch.block_length
        metrics |= run.epochs_by_source(num_blocks)
        if run.precision == "fp16":
            metrics["loss_scale"] = float(self.model_wrapped.optimizer.loss_scale)
        metrics |= self.gradient_norms.metrics() | self.meter.pop_metrics(step, max_steps=run.num_steps)
        return {**metrics, **self.hardware_metrics.take(), **self.meter.times.take()}

    def start_metrics(self) -> dict[str, float]:
        """Speed, time split, memory and energy of this start, as keys of the summary; called on every process."""
        self.meter.times.take()
        speed = self.meter.overall_metrics()
        if speed:
            speed["overall_tokens_per_second_per_gpu"] = speed.pop("tokens_per_second_per_gpu")
        return {**speed, **self.meter.times.totals(), **self.hardware_metrics.take()}

    def floating_point_ops(self, inputs: Batch) -> int:
        """Zero: the Trainer would count partitioned weights, which look empty, and gather the sum at each log."""
        return 0

    def store_flos(self) -> None:
        """Do nothing; see `floating_point_ops`."""

    @contextmanager
    def eager_evaluation(self) -> Iterator[torch.nn.Module]:
        """The engine without gradients, dropout and compiled layers, which would be compiled again for each length."""
        engine = self.model_wrapped
        was_training = engine.training
        engine.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), self.compute_loss_context_manager():
                yield engine
        finally:
            engine.train(was_training)

    def first_block(self) -> Item:
        """The first training block of this start, by which models are compared."""
        return self.data.train[int(self.data.stream.block_ids(self.run_config.start.num_blocks, 1)[0])]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without counting the time as training; no metrics when the run stops meanwhile."""
        with self.meter.pause("evaluation"):
            try:
                return super().evaluate(*args, **kwargs)
            except EvaluationAbandoned:
                self.control.should_evaluate = False
                return {}

    def rewind(self, checkpoint: Path, *, skip_from: int) -> int:
        """Return to a checkpoint of this run and skip the blocks after step `skip_from`; on every process.

        Returns the step of the checkpoint. The counted spikes stay: the skipped blocks are never read again.
        """
        saved, num_consumed = read_trainer_state(checkpoint), self.run_config.num_consumed
        step, num_spikes = saved.global_step, self.step_metrics.num_spikes
        first = num_consumed(max(step, skip_from))
        self.data.stream.skip(first, num_consumed(self.state.global_step) - first)
        self.saver.wait()
        self._reload(checkpoint, step)
        self.meter.go_back(step)
        self.step_metrics.restore(callback_state(saved, StepMetrics.__name__))
        self.step_metrics.num_spikes = num_spikes
        self.loader.move_to(num_consumed(step))
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self.control.should_training_stop = False
        return step

    def get_eval_dataloader(self, eval_dataset: MixedBlocks | None = None) -> DataLoader:
        """Batches of which every process has the same number; no block counts twice."""
        assert eval_dataset is not None, "evaluation needs blocks"
        share, num_groups = self.run_config.batch.sequence_parallel_size, self.run_config.batch.num_groups
        size = self.args.per_device_eval_batch_size
        if not self.run_config.arguments.model.compile_layers:  # which is compiled for each size
            size = evaluation_batch(len(eval_dataset), max_blocks=size, num_groups=num_groups)
        blocks = EvaluationBlocks(eval_dataset, text_bytes=self.data.text_bytes, multiple=size * num_groups)
        starts = range(self.args.process_index // share * size, len(blocks), size * num_groups)
        return WorkerLoader(
            blocks,
            batch_sampler=(range(start, start + size) for start in starts),
            num_workers=self.args.dataloader_num_workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # worker seeds must not advance the random state of dropout
            worker_init_fn=ignore_stop_signals,
        )

    def _with_events(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of an evaluation, with an event for the callbacks before each."""
        for batch in batches:
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            yield batch

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Exact metrics over all tokens instead of the Trainer's mean over micro batches."""
        model = self.model_wrapped
        model.eval()
        with self.compute_loss_context_manager():
            losses_of = partial(self.token_losses, model, in_tiles=self.has_loss_tiles)
            found = evaluate_blocks(
                losses_of, self._with_events(dataloader), sources=self.data.sources, device=self.args.device
            )
        found |= dataloader.dataset.mark
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics |= self.score_tasks() if metric_key_prefix == "eval" else {}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))
