"""What a person sees of a run while it trains: a bar on a terminal, a line per record elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.cli.logs import line_columns
from pretraining.runs.tracking.console import fit_to_width, log_lines, training_metrics
from pretraining.runs.tracking.metrics_file import TASK_PREFIX, Record
from pretraining.runs.tracking.metrics_log import Logs
from pretraining.system.escapes import escape

BAR_FORMAT = "step {n_fmt}/{total_fmt} |{bar}| {desc}"
MIN_BAR_COLUMNS = 5

logger = logging.getLogger(__name__)


class RunDisplay(TrainerCallback):
    """On a terminal the bar shows the metrics of the newest record, and other log lines appear above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._open = ExitStack()
        self._shown_tasks: dict[str, Any] = {}  # the newest scores, with their step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar if the main process has a terminal."""
        if state.is_world_process_zero and sys.stderr.isatty():
            bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True, bar_format=BAR_FORMAT)
            self._bar = self._open.enter_context(bar)
            self._open.enter_context(logging_redirect_tqdm([logging.getLogger("pretraining")]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, also backward after a rollback."""
        if self._bar is not None:
            with self._while_there_is_a_terminal():
                self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Logs = None, **kwargs: Any
    ) -> None:
        """Show a record."""
        if not state.is_world_process_zero or logs is None:
            return
        if self._bar is not None and "loss" in logs:
            with self._while_there_is_a_terminal():
                columns = line_columns() - len(f"step {state.max_steps}/{state.max_steps} || ") - MIN_BAR_COLUMNS - 1
                self._bar.set_description_str(escape(fit_to_width(training_metrics(logs, now=time.time()), columns)))
            return
        record = self._without_shown_tasks({"step": state.global_step, **logs})
        for line in log_lines(record, max_steps=state.max_steps, now=time.time(), columns=line_columns()):
            logger.info(line)

    def _without_shown_tasks(self, record: Record) -> Record:
        """Remove scores that are in the log: with --eval_blocks both evaluations after the last step have the same."""
        tasks = {name: record[name] for name in record if name.startswith(TASK_PREFIX)}
        if not tasks:
            return record
        scores = {"step": record["step"], **tasks}
        if scores == self._shown_tasks:
            return {name: value for name, value in record.items() if name not in tasks}
        self._shown_tasks = scores
        return record

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar; later log lines are written as without one."""
        with suppress(OSError):
            self._open.close()
        self._bar = None

    @contextmanager
    def _while_there_is_a_terminal(self) -> Iterator[None]:
        """Continue without the bar after the terminal was closed."""
        try:
            yield
        except OSError:
            self._bar = None
