"""TensorBoard, wandb, mlflow and trackio, next to metrics.jsonl: no step twice, and an error never ends the run.

The reporters are those of transformers. By themselves the trackers ask for a login, name runs differently at each start
or create a space on the Hub. Settings that are in the environment already are never changed.
"""

import json
import logging
import netrc
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_file import read_log, sound_records
from pretraining.runs.tracking.metrics_log import TIME_NAME
from pretraining.system.files import write_atomically

GUARDED_EVENTS = ("on_log", "on_evaluate", "on_save", "on_train_end")
TRACKERS_NAME = "trackers.json"
WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")

logger = logging.getLogger(__name__)


class Reporters:
    """The Trainer's own reporters, whose errors (full disk, network) do not reach the training.

    Errors at their start do: a tracker that was requested and cannot be reached is a configuration error.

    They end when `end` is called, after the last evaluation and not before it as in the Trainer: mlflow would start
    another run for it. Trackers cannot delete, so a resumed run does not report the steps until `reported_until` again.
    """

    def __init__(self, callbacks: Iterable[TrainerCallback], *, reported_until: int) -> None:
        self._callbacks = [one for one in callbacks if type(one).__module__.startswith("transformers.integrations")]
        for callback in self._callbacks:
            callback.on_log = _with_part_named(callback.on_log)
            if not isinstance(callback, TensorBoardCallback):
                callback.on_log = _skip_already_reported(callback.on_log, reported_until)
            for name in GUARDED_EVENTS:
                setattr(callback, name, _guarded(callback, getattr(callback, name)))
        self._ends = [callback.on_train_end for callback in self._callbacks]
        for callback in self._callbacks:
            callback.on_train_end = _report_nothing

    def end(self, trainer: Trainer) -> None:
        """Close the reporters that did not fail."""
        for callback, end in zip(self._callbacks, self._ends, strict=True):
            if callback.on_log is not _report_nothing:
                end(trainer.args, trainer.state, trainer.control, model=trainer.model)


def _with_part_named(report: Callable[..., Any]) -> Callable[..., Any]:
    """Report the metrics of --eval_blocks as `eval_part_*`: one curve of them and of all validation would mislead."""

    def report_with_part_named(*args: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        if "eval_blocks" in logs:
            logs = {re.sub("^eval_", "eval_part_", name): value for name, value in logs.items()}
        report(*args, logs=logs, **kwargs)

    return report_with_part_named


def _skip_already_reported(report: Callable[..., Any], reported_until: int) -> Callable[..., Any]:
    def report_new_records(
        args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        # Of the last step the evaluation may be missing.
        if state.global_step > reported_until or (state.global_step == reported_until and "loss" not in logs):
            report(args, state, control, logs=logs, **kwargs)

    return report_new_records


def last_reported_step(run_dir: Path) -> int:
    """The last step that a run has reported, which can be later than its last checkpoint; 0 for none."""
    path = run_dir / METRICS_NAME
    if not path.is_file():
        return 0
    # The metrics log warns of damaged lines when it drops them, right after this.
    return max((record["step"] for record in sound_records(path, []) if "loss" in record), default=0)


def _guarded(callback: TrainerCallback, report: Callable[..., Any]) -> Callable[..., Any]:
    name = type(callback).__name__.removesuffix("Callback")

    def report_until_it_fails(*args: Any, **kwargs: Any) -> Any:
        try:
            return report(*args, **kwargs)
        except Exception as error:  # each reporter has different errors
            logger.warning("%s: %s; it gets no more records, metrics.jsonl has them all", name, error)
            for event in GUARDED_EVENTS:
                setattr(callback, event, _report_nothing)
            return None

    return report_until_it_fails


def _report_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Replace the methods of a reporter that failed."""


def purge_after(step: int, callbacks: Iterable[TrainerCallback]) -> None:
    """Have TensorBoard drop the points of later steps, which are repeated; the next record starts a new file.

    Trackers cannot do that: those of a run that was rolled back keep both.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                with suppress(Exception):  # of a full disk: that reporter has failed, or will
                    callback.tb_writer.close()
            callback.tb_writer = None
            callback._SummaryWriter = partial(SummaryWriter, purge_step=step + 1)


class TensorBoardResume(TrainerCallback):
    """Make TensorBoard show a resumed run like an uninterrupted one. Must come after the metrics log.

    Drops the points from the last step of the checkpoint on. The records of this step that the metrics log has kept are
    reported again; others, e.g. of a test, are repeated by the run.
    """

    def __init__(self, run_dir: Path, callbacks: Iterable[TrainerCallback], *, step: int) -> None:
        self._path = run_dir / METRICS_NAME
        self._boards = [callback for callback in callbacks if isinstance(callback, TensorBoardCallback)]
        purge_after(step - 1, self._boards)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the records of the checkpoint's step."""
        if self._boards and state.is_world_process_zero and self._path.is_file():
            for record in read_log(self._path):
                if record["step"] == state.global_step and "event" not in record:
                    logs = {name: record[name] for name in record if name not in ("step", TIME_NAME)}
                    numbers = {name: value for name, value in logs.items() if not isinstance(value, str)}
                    for board in self._boards:
                        board.on_log(args, state, control, logs=numbers)


class TrackedRun(TrainerCallback):
    """Configure the trackers, and keep in the run folder the ids by which a resumed run continues there.

    Must be created before they are. With `resumes` the run continues that of the folder; otherwise it is a new one.
    """

    def __init__(self, args: TrainingArguments, run_dir: Path, *, resumes: bool) -> None:
        self._path = run_dir / TRACKERS_NAME
        self.has_trackers = bool(set(args.report_to) - {"tensorboard"})
        self._ids: dict[str, str] = {}
        if resumes and self._path.is_file():
            with suppress(ValueError):  # of a power cut in an earlier version
                self._ids = json.loads(self._path.read_text(encoding="utf-8"))
        # Unlike the name of the folder it is unique: trackio continues any run of the same name.
        self._ids.setdefault("name", args.run_name or f"{run_dir.resolve().name}-{secrets.token_hex(3)}")
        args.run_name = self._ids["name"]
        if "wandb" in args.report_to:
            self._ids.setdefault("WANDB_RUN_ID", secrets.token_hex(4))
            self._set("WANDB_RUN_ID", WANDB_PROJECT=args.project, WANDB_DIR=str(run_dir), WANDB_RESUME="allow")
            _avoid_wandb_login(run_dir)
        if "mlflow" in args.report_to:
            self._set("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", MLFLOW_EXPERIMENT_NAME=args.project)

    def _set(self, *names: str, **settings: str) -> None:
        for name, value in {**settings, **{name: self._ids[name] for name in names if name in self._ids}}.items():
            os.environ.setdefault(name, value)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the ids of the runs that the trackers have started."""
        if state.is_world_process_zero and set(args.report_to) & {"wandb", "mlflow", "trackio"}:
            if "mlflow" in args.report_to and (mlflow := sys.modules.get("mlflow")) is not None:
                self._ids["MLFLOW_RUN_ID"] = mlflow.active_run().info.run_id
                if "@" not in urlsplit(mlflow.get_tracking_uri()).netloc:  # a password stays in the environment
                    self._ids["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
            write_atomically(self._path, (json.dumps(self._ids, indent=1) + "\n").encode())


def _avoid_wandb_login(run_dir: Path) -> None:
    """Let wandb write into the run folder where it has no key: it would ask for one, and all GPUs would wait."""
    if "WANDB_MODE" in os.environ or any(os.environ.get(name) for name in WANDB_KEYS):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None:
            return
    os.environ["WANDB_MODE"] = "offline"
    logger.info("wandb: no key is configured, so it writes into %s/wandb; upload it with `wandb sync`", run_dir)
