"""What the doctor consists of: checks, and the findings that they yield."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table; a failure would end a run or make it wrong.

    `figure` is for people, `figures` holds the same numbers for programs; `fix` is a command to paste. The runner sets
    the group and the seconds.
    """

    name: str
    status: Status
    figure: str
    fix: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """A function that yields findings, and the seconds that it may take; it is given the folders that runs will use."""

    group: str
    name: str
    function: Callable[[Sequence[Path]], Iterator[Finding]]
    limit_seconds: float = 4.0


def ok(name: str, figure: str, /, **figures: Any) -> Finding:
    """Nothing to fix."""
    return Finding(name, "ok", figure, figures=figures)


def warning(name: str, figure: str, fix: str, /, **figures: Any) -> Finding:
    """The run works, but slower or with less than the machine could provide."""
    return Finding(name, "warning", figure, fix, figures)


def failure(name: str, figure: str, fix: str, /, **figures: Any) -> Finding:
    """The run would end, hang or be wrong."""
    return Finding(name, "failure", figure, fix, figures)
