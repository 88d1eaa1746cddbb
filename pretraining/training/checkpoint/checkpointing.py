"""The Trainer's checkpoints: their parts, and how they are loaded."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from pretraining.errors import UserError
from pretraining.hub.repository import Repository
from pretraining.hub.retry import HUB_ERRORS, error_message
from pretraining.runs.checksums import incomplete_reason
from pretraining.runs.run_folder import optimizer_shards
from pretraining.runs.run_record import copy_run_record
from pretraining.runs.untrusted import reading_small
from pretraining.system.launchers import num_local_processes
from pretraining.training.checkpoint.async_saver import CheckpointSaver
from pretraining.training.checkpoint.finiteness import non_finite_state
from pretraining.training.checkpoint.parts import CheckpointPart, host_copy
from pretraining.training.checkpoint.reshard import load_checkpoint, reseed_for_world_size
from pretraining.training.distributed.collectives import broadcast_object, is_main_process
from pretraining.training.metrics.throughput import ThroughputMeter

WRITE_ERRORS = (OSError, RuntimeError)  # of a full disk; torch.save raises the latter

logger = logging.getLogger(__name__)


def _name_callbacks(trainer: Trainer) -> None:
    """Have a place in the state for each callback: that of an earlier checkpoint has them under earlier names."""
    callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, ExportableState)]
    saved = trainer.state.stateful_callbacks
    names = [type(one).__name__ for one in [*callbacks, trainer.control]]
    trainer.state.stateful_callbacks = {name: saved.get(name, {}) for name in names}


class CheckpointingTrainer(Trainer):
    """Saves the Trainer's checkpoints by a `CheckpointSaver`, which writes them while training continues.

    `on_non_finite` is called on every process with what is not finite: it raises, or rolls back to a checkpoint.
    """

    on_non_finite: Callable[[str], None]

    def __init__(self, *, meter: ThroughputMeter, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        self.meter = meter
        self.saver = CheckpointSaver(num_local_processes=num_local_processes())

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Collect the parts of a checkpoint from the Trainer and have the saver write them, if all state is finite."""
        with self.meter.pause("save"):
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if not self.check_finite() or not self.saver.begin(folder, self.state.global_step):
                return
            _name_callbacks(self)
            with self.saver.collecting_errors(OSError):  # of trainer_state.json, written after the last collective
                super()._save_checkpoint(*args, **kwargs)
            self.saver.start()

    def check_finite(self) -> bool:
        """Check weights and optimizer state; False when they were not finite and the run was rolled back. Collective.

        Raises:
            UserError: when they are not finite and the run cannot roll back.
        """
        found = non_finite_state(self.model_wrapped)
        if found is not None:
            self.on_non_finite(found)
        return found is None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Gather the weights; the saver writes those of a checkpoint."""
        if not _internal_call:
            super().save_model(output_dir)
            return
        weights = self.whole_weights()
        if self.args.should_save:
            folder = Path(str(output_dir))
            self.saver.add(self._weights_part(weights, folder))
            with self.saver.collecting_errors(*WRITE_ERRORS):
                self.model.config.save_pretrained(folder)
                self.model.generation_config.save_pretrained(folder)
                self.processing_class.save_pretrained(folder)

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The weights in host memory of the first process; empty on the others below stage 3. Called on every process.

        There accelerate would copy them on every process, and as parts of one storage, which no file takes.
        """
        engine = self.model_wrapped
        if engine.zero_optimization_stage() == 3:
            return self.accelerator.get_state_dict(engine)
        if not is_main_process():
            return {}
        weights = engine.module.state_dict()
        copies = host_copy({weight.data_ptr(): weight for weight in weights.values()})  # of tied weights one
        return {name: copies[weight.data_ptr()] for name, weight in weights.items()}

    def _weights_part(self, weights: dict[str, torch.Tensor], folder: Path) -> CheckpointPart:
        def write(content: dict[str, torch.Tensor]) -> list[Path]:
            save_torch_state_dict(content, folder, metadata={"format": "pt"})
            return list(folder.glob("model*.safetensors*"))

        # Whole weights are a copy, except small ones that ZeRO-3 gathers where the device is the host.
        untied = {name: weight for name, weight in weights.items() if name not in self.model.all_tied_weights_keys}
        is_copy = self.args.device.type != "cpu" or self.model_wrapped.zero_optimization_stage() < 3
        return CheckpointPart(untied, write, is_copy=is_copy)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.saver.install(self.model_wrapped)
        try:
            self.model_wrapped.save_checkpoint(output_dir, save_latest=False)
        except OSError as error:  # DeepSpeed copies NVMe files itself; the other processes wait, so the run ends
            raise UserError(f"{output_dir}: DeepSpeed could not save ({error}); free disk space") from None
        if self.args.should_save:
            with self.saver.collecting_errors(*WRITE_ERRORS):
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))
                copy_run_record(Path(self.args.output_dir), Path(output_dir))
                Path(output_dir, "latest").write_text(f"global_step{self.model_wrapped.global_steps}", encoding="ascii")

    def _save_rng_state(self, output_dir: str) -> None:
        with self.saver.collecting_errors(*WRITE_ERRORS):
            super()._save_rng_state(output_dir)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository of --push_to_hub before training.

        Raises:
            UserError: when the Hub rejects that.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
            if self.args.process_index == 0:
                repository = Repository(self.hub_model_id, "model", token=self.args.hub_token)
                repository.announce(asked_private=bool(self.args.hub_private_repo), flag="--hub_private_repo")
        except HUB_ERRORS as error:
            raise UserError(
                f"--push_to_hub: cannot create the Hub repository ({error_message(error)}); fix it, or remove the flag"
            ) from None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: the checkpoint is not written yet; `hub_push` pushes it."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, checkpoint: str | None) -> Any:
        """Prepare as the Trainer does, but load the checkpoint here: another number of processes may have saved it."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if checkpoint is not None:
            self.load(checkpoint)
        return prepared

    def load(self, checkpoint: str) -> None:
        """Load weights, optimizer and schedule of a checkpoint, whatever number of processes saved it."""
        load_checkpoint(self.model_wrapped, Path(checkpoint))
        with reading_small(Path(checkpoint), "scheduler.pt"):
            self._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or len(optimizer_shards(Path(checkpoint))) == self.args.world_size:
            with reading_small(Path(checkpoint or ""), "rng_state*.pth"):
                super()._load_rng_state(checkpoint)
        else:
            reseed_for_world_size(Path(checkpoint), seed=self.args.seed, process=self.args.process_index)

    def _load_best_model(self) -> None:
        """Load the weights of the best evaluation, if its checkpoint could be saved."""
        self.saver.wait()
        checkpoint = Path(str(self.state.best_model_checkpoint))
        problem = broadcast_object(incomplete_reason(checkpoint))
        if problem is None:
            load_checkpoint(self.model_wrapped, checkpoint)
        else:
            logger.warning("%s: %s; the last weights are kept in place of the best", checkpoint, problem)
