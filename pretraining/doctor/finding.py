"""What the doctor consists of: checks, and the findings that they yield."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    With a warning the run works, but slower or with less than the machine could provide; after a failure it would end,
    hang or be wrong. `figure` is for people, `figures` holds the same numbers for programs; `fix` is a command to
    paste. The runner sets the group and the seconds.
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
    """A finding that only slows a run."""
    return Finding(name, "warning", figure, fix, figures)


def failure(name: str, figure: str, fix: str, /, **figures: Any) -> Finding:
    """A finding that ends a run."""
    return Finding(name, "failure", figure, fix, figures)


def warning_if(is_bad: bool, name: str, figure: str, fix: str, /, **figures: Any) -> Finding:
    """A warning, or ok with the same figure."""
    return warning(name, figure, fix, **figures) if is_bad else ok(name, figure, **figures)
