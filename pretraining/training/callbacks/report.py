"""--report: report.html and curves.png in the run folder, anew at each evaluation and at the end."""

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.report.background import ReportProcess
from pretraining.runs.run_folder import REPORT_NAME
from pretraining.system.launchers import process_rank
from pretraining.training.config.run_config import RunConfig

END_SECONDS = 120.0
STOP_SECONDS = 10.0  # launchers kill 30 s after they asked, and the checkpoint has taken its part of them
# What a browser shows of it, in a sentence.
SHOWS = "open it in a browser: loss, speed, where the time went, samples and settings"

logger = logging.getLogger(__name__)


class ReportCallback(TrainerCallback):
    """Has the first process start the one that writes the report. Nothing that goes wrong with it reaches the run."""

    def __init__(self, plan: RunConfig) -> None:
        is_wanted = plan.arguments.observability.report and process_rank() == 0
        self._run_dir = plan.run_dir
        self._process = ReportProcess(plan.run_dir) if is_wanted else None
        self._has_warned = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have it written, while the training goes on."""
        self._start()

    def finish(self, *, is_stopped: bool = False) -> None:
        """Have it written with all that the log has now, and wait for that."""
        if self._process is not None and self._is_written(self._process, STOP_SECONDS if is_stopped else END_SECONDS):
            logger.info("report: %s (%s)", self._run_dir / REPORT_NAME, SHOWS)

    def finish_again(self) -> None:
        """Have what came after the end written too, such as what became of the last push."""
        if self._process is not None:
            self._is_written(self._process, END_SECONDS)

    def _is_written(self, process: ReportProcess, seconds: float) -> bool:
        self._warn(process.wait(seconds=seconds))
        self._start()
        problem = process.wait(seconds=seconds)
        self._warn(problem)
        return problem is None

    def _start(self) -> None:
        if self._process is None:
            return
        try:
            self._warn(self._process.start())
        except OSError as error:
            self._warn(str(error))

    def _warn(self, problem: str | None) -> None:
        """Say it once: what fails each time would fill the log."""
        if problem is not None and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "report.html: %s; the run goes on; to try again: python3 -m tools.report RUN_FOLDER", problem
            )
