"""Read tasks from JSON lines: multiple choice, or cloze (the completion of a text).

    {"context": "The capital of France is", "choices": ["Rome", "Paris"], "answer": 1}
    {"context": "She opened the door and saw her", "completion": "mother"}

`question` is another name of `context`. A context and what follows are joined by one space, unless there is white space
between them already; the field `delimiter` sets another string. Other fields are ignored.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.data.input.find import NAMED_SOURCE
from pretraining.errors import raise_problems, shortened
from pretraining.runs.tracking.metrics_file import TASK_NAME
from pretraining.system.checked_json import parse_json, type_problem

MAX_FILE_BYTES = 1 << 30  # a task of 10,000 questions has 10 MB
MIN_CHOICES = 2
CONTEXT_FIELDS = ("context", "question")
SCHEMA = {
    **dict.fromkeys((*CONTEXT_FIELDS, "completion", "delimiter"), str),
    "choices": [str],
    "answer": int,
}
FORMAT = 'use {"context": ..., "choices": [...], "answer": 0} or {"context": ..., "completion": ...}'
HARNESS_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Example:
    """A context and what may follow; `choices[answer]` is right. A cloze has one choice: its completion."""

    context: str
    choices: tuple[str, ...]
    answer: int = 0
    delimiter: str = ""

    def texts(self) -> Iterator[tuple[str, str]]:
        """The context with each choice, which starts with the delimiter."""
        return ((self.context, self.delimiter + choice) for choice in self.choices)


@dataclass(frozen=True)
class FileTask:
    """The examples of a file, all of one kind."""

    name: str
    examples: list[Example]

    @property
    def is_cloze(self) -> bool:
        """Whether completions are scored, not choices."""
        return len(self.examples[0].choices) == 1


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-evaluation-harness: a YAML file, or the name of a task that it brings along."""

    name: str
    location: str


def read_tasks(words: Sequence[str], *, flag: str) -> list[FileTask | HarnessTask]:
    """The tasks that a flag names, in its order: `[NAME=]FILE`, or the name of a task of lm-evaluation-harness.

    Raises:
        UserError: all problems of all files at once.
    """
    problems: list[str] = []
    tasks: list[FileTask | HarnessTask] = []
    for word in words:
        try:
            task = _read_task(word, flag, problems)
        except OSError as error:  # also of a name that is too long for any file
            problems.append(f"{flag} {shortened(word)}: cannot be read ({error.strerror}); check the file")
            continue
        tasks += [] if task is None else [task]
    counts = Counter(task.name for task in tasks)
    problems += [
        f"{flag} {name}: names {count} tasks; name them by NAME=FILE" for name, count in counts.items() if count > 1
    ]
    raise_problems(problems)
    return tasks


def _read_task(word: str, flag: str, problems: list[str]) -> FileTask | HarnessTask | None:
    match = NAMED_SOURCE.fullmatch(word)
    name, location = (None, word) if match is None or Path(word).exists() else match.groups()
    path = Path(location)
    shown = location.encode("utf-8", "backslashreplace").decode()
    is_file = path.suffix != "" or "/" in location or path.exists()
    is_of_harness = path.suffix in HARNESS_SUFFIXES or not is_file
    name = name or (path.name.split(".")[0] if is_file else location)
    if not TASK_NAME.fullmatch(name):
        problems.append(f"{flag} {shown}: its name is not of letters, digits, - and _; pass NAME=FILE")
    elif is_of_harness and importlib.util.find_spec("lm_eval") is None:
        problems.append(
            f"{flag} {shown}: is a task of lm-evaluation-harness, which is not installed; install lm_eval, or pass a "
            "file of JSON lines"
        )
    elif is_file and not path.is_file():
        problems.append(
            f"{flag} {shown}: {'not a regular file' if path.exists() else 'file not found'}; check the path"
        )
    elif is_of_harness:
        return HarnessTask(name, location)
    else:
        examples = _read_examples(path, f"{flag} {shown}", problems)
        return FileTask(name, examples) if examples else None
    return None


def _read_examples(path: Path, place: str, problems: list[str]) -> list[Example]:
    """The examples of a file; what is wrong with it is added to `problems`."""
    if path.stat().st_size > MAX_FILE_BYTES:
        problems.append(f"{place}: is larger than 1 GiB; use a smaller file")
        return []
    examples, found = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                examples.append(_example_of(parse_json(line)))
            except ValueError as error:
                found.append(f"{place}: line {number}: {error}")
    if not (examples or found):
        found.append(f"{place}: has no example; {FORMAT}")
    if len({len(example.choices) == 1 for example in examples}) == 2:
        found.append(f"{place}: has both choices and completions; use one file for each")
    more = f" ({len(found) - 1:,} more in this file)" if len(found) > 1 else ""
    problems += [one + more for one in found[:1]]  # a file of another kind has one in each line
    return examples


def _example_of(record: Any) -> Example:
    """The example of a line.

    Raises:
        ValueError: with what is wrong and the remedy.
    """
    problem = type_problem(record, SCHEMA)
    if problem is not None:
        raise ValueError(f"{shortened(problem)}; {FORMAT}")
    contexts = [record[name] for name in CONTEXT_FIELDS if name in record]
    has_choices = "choices" in record
    if len(contexts) != 1 or has_choices == ("completion" in record):
        raise ValueError(f"needs one context, and choices or a completion; {FORMAT}")
    choices = tuple(record["choices"] if has_choices else [record["completion"]])
    if has_choices and len(choices) < MIN_CHOICES:
        raise ValueError(f"has {len(choices)} choices; use {MIN_CHOICES} or more")
    if not all(choices):
        raise ValueError("a choice or completion is empty; remove it, or write its text")
    if has_choices and "answer" not in record:
        raise ValueError("answer is missing; add the number of the right choice, from 0")
    answer = record["answer"] if has_choices else 0
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer} is not the number of a choice; use 0 to {len(choices) - 1}")
    (context,) = contexts
    delimiter = record.get("delimiter", _default_delimiter(context, choices))
    return Example(context, choices, answer, delimiter)


def _default_delimiter(context: str, choices: Sequence[str]) -> str:
    """One space, unless the context is empty, or ends with white space, or a choice begins with it."""
    is_separate = context == "" or context[-1].isspace() or any(choice[0].isspace() for choice in choices)
    return "" if is_separate else " "
