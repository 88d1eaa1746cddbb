"""Read metrics.jsonl record by record, without the lines that a power cut, a bad disk or an editor has damaged."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pretraining.system.checked_json import MAX_INT, NUMBER, parse_json, type_problem

Record = dict[str, Any]

# The evaluated splits, by the beginning of the names of their metrics.
EVALUATIONS = {"eval": "validation", "test": "test"}
# The metrics of an evaluation, by the end of their names, with the format in which each is shown.
METRIC_FORMATS = {"loss": ".4f", "perplexity": ",.2f", "accuracy": ".1%", "bits_per_byte": ".3f"}
# The metrics of a downstream task, in the record of the evaluation of validation that scored it.
TASK_NAME = re.compile(r"[\w-]+")
TASK_FORMATS = {"acc": ".1%", "acc_norm": ".1%", "chance": ".1%", "perplexity": ",.2f", "bits_per_byte": ".3f"}
TASK_PREFIX = "task/"
TASK_METRIC = re.compile(r"task/([\w-]+)/(\w+)")
# The parts of an interval, by the beginning of the names of their seconds: the work of the GPUs, then what delays it.
TIME_PARTS = {
    "forward_backward": "forward and backward",
    "optimizer": "optimizer",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "save": "saving",
    "other": "other",
}

MAX_LINE_BYTES = 64 << 20  # samples take a few kB; without a limit, a hole of zeros in a file would fill the memory
MAX_STEP = 2**53
MAX_TIME = 1e11  # of `logged_at`, in unix seconds: the year 5138
MAX_NAMED_LINES = 20  # damaged ones, in a warning
# Of events; the metrics of other records are numbers or strings such as "nan".
SCHEMA = {
    "event": str,
    "num_processes": int | None,
    "samples": list,
    "blocks": [{"documents": [dict]}],
    "logged_at": NUMBER,
}

logger = logging.getLogger(__name__)


def read_log(path: Path) -> Iterator[Record]:
    """Yield the sound records of a log one by one, in memory that does not grow with the run.

    One warning at the end names the damaged lines.

    Raises:
        OSError: when the file cannot be read.
    """
    damaged: list[int] = []
    yield from sound_records(path, damaged)
    if damaged:
        logger.warning("%s and ignored", describe_damage(path, damaged))


def sound_records(path: Path, damaged: list[int]) -> Iterator[Record]:
    """Like `read_log`, but the numbers of the damaged lines are added to `damaged`."""
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if line.isspace():
                continue
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if _is_record(record):
                yield record
            else:
                damaged.append(number)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only the beginning, which is not JSON."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)


def _is_record(record: Any) -> bool:
    """Whether a value has a step, and the other fields that are used have their types."""
    if not isinstance(record, dict) or type_problem(record, SCHEMA) is not None:
        return False
    step, logged_at = record.get("step"), record.get("logged_at", 0)
    if type(step) is not int or not 0 <= step <= MAX_STEP or not 0 <= logged_at <= MAX_TIME:
        return False
    return "event" in record or not any(isinstance(value, (dict, list)) for value in record.values())


def task_metrics(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of each downstream task of a record: of `task/NAME/acc` the value by NAME and `acc`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in record.items():
        if (match := TASK_METRIC.fullmatch(name)) is not None:
            found.setdefault(match[1], {})[match[2]] = value
    return found


def format_task(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The accuracies of a task with their standard errors, chance, perplexity and bits per byte, as far as known.

    >>> format_task({"acc": 0.625, "acc_stderr": 0.0151, "chance": 0.5, "num_examples": 1024})
    {'acc': '62.5% ± 1.5%', 'chance': '50.0%'}
    """
    errors = {name: metrics.get(f"{name}_stderr") for name in TASK_FORMATS}
    return {
        name: _format(metrics[name], form) + (f" ± {_format(errors[name], form)}" if errors[name] is not None else "")
        for name, form in TASK_FORMATS.items()
        if name in metrics
    }


def describe_task(metrics: Mapping[str, Any]) -> str:
    """The metrics of a task in a line."""
    shown = [f"{name.replace('_', ' ')} {value}" for name, value in format_task(metrics).items()]
    return ", ".join(
        [*shown, f"{_format(metrics['num_examples'], ',')} examples"] if "num_examples" in metrics else shown
    )


def _format(value: Any, number_format: str) -> str:
    """A number as text; "nan" and "inf" are strings already."""
    return format(value, number_format) if isinstance(value, (int, float)) else str(value)


def number_of(record: Mapping[str, Any], name: str) -> float:
    """A metric of a record as a number that can be summed; 0 where it is absent or NaN."""
    value = record.get(name)
    return value if isinstance(value, (int, float)) and abs(value) <= MAX_INT else 0.0


def describe_part(record: Mapping[str, Any], prefix: str) -> str:
    """What to add to the name of a split where only some of its blocks were evaluated.

    >>> describe_part({"eval_loss": 2.5, "eval_blocks": 1200}, "eval")
    ', 1,200 blocks'
    """
    num_blocks = record.get(f"{prefix}_blocks")
    return f", {num_blocks:,} blocks" if isinstance(num_blocks, (int, float)) else ""


def describe_damage(path: Path, damaged: Sequence[int]) -> str:
    """Which lines of a log are damaged.

    >>> describe_damage(Path("metrics.jsonl"), [3, 7])
    'metrics.jsonl: lines 3, 7 are damaged'
    """
    named = ", ".join(map(str, damaged[:MAX_NAMED_LINES]))
    more = f" and {len(damaged) - MAX_NAMED_LINES:,} others" if len(damaged) > MAX_NAMED_LINES else ""
    return f"{path}: line{'s' * (len(damaged) > 1)} {named}{more} {'are' if len(damaged) > 1 else 'is'} damaged"
