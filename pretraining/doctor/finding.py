"""What a check found: ok, warning or failure, the figure seen and what mends it."""

import dataclasses
from typing import Any, Literal

Status = Literal["ok", "warning", "failure"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's table; a failure is what a run would die of or be wrong by.

    `figure` is for people, `figures` holds the same numbers for programs; `fix` is a command to paste. Group and
    seconds are filled in by who ran the check.
    """

    name: str
    status: Status
    figure: str
    fix: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""
    seconds: float = 0.0


def ok(name: str, figure: str, /, **figures: Any) -> Finding:
    """Nothing to mend."""
    return Finding(name, "ok", figure, figures=figures)


def warning(name: str, figure: str, fix: str, /, **figures: Any) -> Finding:
    """The run works, slower or with less than the machine could give."""
    return Finding(name, "warning", figure, fix, figures)


def failure(name: str, figure: str, fix: str, /, **figures: Any) -> Finding:
    """The run would end, hang or be wrong."""
    return Finding(name, "failure", figure, fix, figures)


def gigabytes(num_bytes: float) -> str:
    """`num_bytes` as people say it.

    >>> gigabytes(143_771e6), gigabytes(67_108_864), gigabytes(2e6)
    ('143.8 GB', '67 MB', '2 MB')
    """
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
