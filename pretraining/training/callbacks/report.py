"""--report: write report.html and curves.png at each evaluation and at the end, in a background process."""

import logging

from transformers import TrainerControl, TrainerState

from pretraining.runs.report.background import ReportProcess
from pretraining.runs.run_folder import REPORT_NAME
from pretraining.system.launchers import process_rank
from pretraining.training.config.run_config import RunConfig
from pretraining.training.trainer.hf_internals import RunCallback

END_SECONDS = 120.0
STOP_SECONDS = 10.0  # launchers kill 30 s after they asked to stop, and the checkpoint takes part of that
CONTENT = "open it in a browser: loss, speed, where the time went, samples and settings"

logger = logging.getLogger(__name__)


class ReportCallback(RunCallback):
    """Starts the report's process from the main process. A report that fails does not reach the training."""

    def __init__(self, run: RunConfig) -> None:
        self._run_dir = run.run_dir
        is_on = run.arguments.observability.report and process_rank() == 0
        self._process = ReportProcess(run.run_dir) if is_on else None
        self._has_warned = False

    def evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        """Start a report while the training continues."""
        if self._process is not None:
            self._start(self._process)

    def finish(self, *, is_stopped: bool = False, is_logged: bool = True) -> None:
        """Write the report from the whole log, e.g. with the result of the last push, and wait for it."""
        process, seconds = self._process, STOP_SECONDS if is_stopped else END_SECONDS
        if process is None:
            return
        self._warn(process.wait(seconds=seconds))
        self._start(process)
        problem = process.wait(seconds=seconds)
        self._warn(problem)
        if problem is None and is_logged:
            logger.info("report: %s (%s)", self._run_dir / REPORT_NAME, CONTENT)

    def _start(self, process: ReportProcess) -> None:
        try:
            self._warn(process.start())
        except OSError as error:
            self._warn(str(error))

    def _warn(self, problem: str | None) -> None:
        """Warn once: a report that fails each time would fill the log."""
        if problem is not None and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "report.html: %s; training continues; to try again: python3 -m tools.report RUN_FOLDER", problem
            )
