"""What the doctor consists of: checks, the findings that they yield, and the table or JSON object that shows them."""

import dataclasses
import json
import os
import platform
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pretraining.system.host import processor_name

Status = Literal["ok", "warning", "failure"]
STATUS_WIDTH, NAME_WIDTH, MIN_WIDTH, MAX_WIDTH = 7, 20, 60, 140
COLORS = {"failure": "31", "warning": "33", "ok": "32"}  # the worst first
INDENT = " " * (2 + STATUS_WIDTH + 2)


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


class Table:
    """Formats findings row by row, with the name of each group above its rows."""

    def __init__(self, *, colors: bool = False) -> None:
        self._width = min(max(shutil.get_terminal_size((100, 24)).columns, MIN_WIDTH), MAX_WIDTH)
        self._colors = colors
        self._group = ""

    def rows(self, finding: Finding) -> str:
        """The lines of one finding. A command has a separate line, however long, so that it can be pasted."""
        wrapped = textwrap.wrap(
            f"{finding.name:<{NAME_WIDTH}}  {finding.figure}",
            self._width - len(INDENT),
            subsequent_indent=" " * (NAME_WIDTH + 2),
            break_on_hyphens=False,
        )
        status = self._colored(f"{finding.status:<{STATUS_WIDTH}}", COLORS[finding.status])
        lines = [f"  {status}  {wrapped[0]}", *(INDENT + line for line in wrapped[1:])]
        if finding.group != self._group:
            lines = [*([""] if self._group else []), self._colored(finding.group, "1"), *lines]
            self._group = finding.group
        if finding.fix and finding.status != "ok":
            lines.append(INDENT + self._colored(f"$ {finding.fix}", "1"))
        return "\n".join(lines) + "\n"

    def verdict(self, findings: Sequence[Finding], *, seconds: float) -> str:
        """The last line."""
        found = {finding.status for finding in findings}
        worst = next((status for status in COLORS if status in found), "ok")
        return "\n" + self._colored(verdict(findings, seconds=seconds), f"1;{COLORS[worst]}") + "\n"

    def _colored(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colors else text


def verdict(findings: Sequence[Finding], *, seconds: float) -> str:
    """What all findings together mean, in one line.

    >>> verdict([Finding("python", "ok", "3.12.1")], seconds=12.3)
    'ready to train: 1 ok, 0 warnings, 0 failures in 12 s'
    """
    counts = Counter(finding.status for finding in findings)
    num_warnings, num_failures = counts["warning"], counts["failure"]
    ready = "not ready to train" if num_failures else f"ready to train{', with warnings' * bool(num_warnings)}"
    shown = f"{counts['ok']} ok, {num_warnings} warning{'s' * (num_warnings != 1)}"
    return f"{ready}: {shown}, {num_failures} failure{'s' * (num_failures != 1)} in {seconds:.0f} s"


def as_json(findings: Sequence[Finding], *, seconds: float) -> str:
    """Machine, findings and verdict as one object."""
    machine = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "num_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [finding.figures["gpu"] for finding in findings if "gpu" in finding.figures],
    }
    found = {"machine": machine, "findings": [dataclasses.asdict(finding) for finding in findings]}
    return json.dumps({**found, "verdict": verdict(findings, seconds=seconds), "seconds": seconds}, indent=2)
