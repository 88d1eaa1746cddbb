"""--push_to_hub: what of a run goes to the Hub, when, and what is said of it."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.errors import UserError
from pretraining.hub.push_queue import PushQueue, UploadPayload
from pretraining.hub.repository import Repository, check_license, hash_files
from pretraining.hub.retry import error_message, with_retries
from pretraining.runs.checksums import incomplete_reason
from pretraining.runs.run_folder import MODEL_DIR_NAME
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.callbacks.hub_payload import clear_parcels, final_payload, parcel_of_checkpoint
from pretraining.training.distributed.collectives import is_main_process, run_on_main, run_on_main_polling
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


class HubPushCallback(TrainerCallback):
    """Pushes complete checkpoints while the training goes on, unless --hub_strategy is end, and the model at its end.

    Only the first process pushes. It must stand after what waits for the last checkpoint.
    """

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._strategy = trainer.args.hub_strategy
        self._queue = PushQueue(self._push, self._tell_problem)
        self._lost: dict[int, str] = {}  # steps of which the Hub has nothing yet, with the reason
        self._repository: Repository | None = None
        license_name = trainer.plan.arguments.observability.license
        if trainer.args.push_to_hub and license_name is not None:
            run_on_main(lambda: check_license(license_name))
        if trainer.args.push_to_hub and is_main_process():
            self._repository = Repository(
                trainer.hub_model_id, "model", token=trainer.args.hub_token, revision=trainer.args.hub_revision
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin again with the checkpoint that the run goes on from: its push may have been cut off."""
        if self._repository is not None:
            clear_parcels(self._trainer.plan.run_dir)
            self.put_checkpoint(state.global_step)

    def put_checkpoint(self, step: int) -> None:
        """Push that of a step, if it is there whole."""
        plan = self._trainer.plan
        checkpoint = plan.run_dir / f"checkpoint-{step}"
        if self._repository is None or self._strategy == HubStrategy.END or incomplete_reason(checkpoint) is not None:
            return
        try:
            parcel = parcel_of_checkpoint(
                plan, checkpoint, step, strategy=self._strategy, repository=self._repository.name
            )
        except Exception as error:  # of a full disk above all
            self._tell_problem(UploadPayload(step, f"model of step {step}", checkpoint, ()), error_message(error), True)
            return
        self._queue.put(parcel)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what does not get there any more when the run stops before its last step."""
        if state.global_step < state.max_steps:
            for parcel in self._queue.unfinished:
                logger.warning("not pushed yet: %s; the same command goes on with that", parcel.description)

    def finish(self) -> str | None:
        """Push the end of the run and see that it is there; what went wrong, if anything."""
        assert self._repository is not None
        self._queue.close()
        repository, plan, step = self._repository, self._trainer.plan, self._trainer.state.global_step
        try:
            parcel = final_payload(plan, step, strategy=self._strategy, repository=repository.name)
            problem = self._delivered(repository, parcel)
        except Exception as error:  # whatever it is, the other processes wait for an answer
            problem = error_message(error)
        if problem is not None:
            self._record(step, f"model of step {step}", problem)
        self._say_lost()
        clear_parcels(plan.run_dir)
        return problem

    def _delivered(self, repository: Repository, parcel: UploadPayload) -> str | None:
        commit = with_retries(lambda: repository.push(parcel))
        wrong = repository.wrong_files(
            hash_files(parcel.folder, [path for path in parcel.folder.rglob("*") if path.is_file()])
        )
        if wrong is None:
            self._tell_arrival(parcel, commit)
        return wrong

    def _push(self, parcel: UploadPayload) -> None:
        assert self._repository is not None
        self._tell_arrival(parcel, self._repository.push(parcel))

    def _tell_arrival(self, parcel: UploadPayload, commit: str) -> None:
        assert self._repository is not None
        self._record(parcel.step, parcel.description, None)
        arrived = parcel.description.split(", ")
        self._lost = {step: problem for step, problem in self._lost.items() if f"checkpoint-{step}" not in arrived}
        logger.info("pushed: %s at commit %s: %s", self._repository.url, commit, parcel.description)

    def _tell_problem(self, parcel: UploadPayload, problem: str, is_over: bool) -> None:
        assert self._repository is not None
        self._record(parcel.step, parcel.description, problem)
        self._lost[parcel.step] = problem
        logger.log(
            logging.INFO if is_over else logging.WARNING,
            "not pushed: %s to %s (%s)%s",
            parcel.description,
            self._repository.name,
            problem,
            "" if is_over else "; it is tried again until a newer one takes its place",
            extra=LOGGED_AS_EVENT,
        )

    def _record(self, step: int, what: str, problem: str | None) -> None:
        assert self._repository is not None
        event = {"event": "push", "what": what, "repository": self._repository.name, "problem": problem}
        self._metrics_log.write_event({"step": step, **event})

    def _say_lost(self) -> None:
        """With all_checkpoints each was to be there."""
        if self._lost and self._strategy == HubStrategy.ALL_CHECKPOINTS:
            told = "; ".join(f"checkpoint-{step} ({problem})" for step, problem in self._lost.items())
            logger.warning("not on the Hub: %s", told)


def push_model(trainer: PretrainingTrainer) -> None:
    """Push the exported model; called on every process, the first one pushes.

    Raises:
        UserError: on every process, when the Hub does not take it.
    """
    pushes = trainer.pop_callback(HubPushCallback)
    problem = run_on_main_polling(pushes.finish)
    if problem is not None:
        model_dir: Path = trainer.plan.run_dir / MODEL_DIR_NAME
        raise UserError(
            f"--push_to_hub: {model_dir} could not be pushed ({problem}); it is whole, and the same command pushes "
            "again"
        )
