"""Findings as a table that fits the terminal, and as one JSON object."""

import dataclasses
import json
import os
import platform
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from pretraining.doctor.finding import Finding
from pretraining.system.host import processor_name

STATUS_WIDTH, NAME_WIDTH, LEAST_WIDTH, MOST_WIDTH = 7, 20, 60, 140
COLOURS = {"ok": "32", "warning": "33", "failure": "31"}


class Table:
    """Writes findings row by row; a group has its name above it."""

    def __init__(self, *, width: int | None = None, colours: bool = False) -> None:
        columns = width or shutil.get_terminal_size((100, 24)).columns
        self._width = min(max(columns, LEAST_WIDTH), MOST_WIDTH)
        self._colours = colours
        self._group = ""

    def rows(self, finding: Finding) -> str:
        """The lines of one finding. A command stands on a line of its own, however long, so that it can be pasted."""
        indent = 2 + STATUS_WIDTH + 2
        margin = " " * (indent + NAME_WIDTH + 2)
        status = self._painted(f"{finding.status:<{STATUS_WIDTH}}", COLOURS[finding.status])
        name = textwrap.wrap(finding.name, NAME_WIDTH, break_long_words=False) or [""]
        text = textwrap.wrap(finding.figure, self._width - len(margin), break_on_hyphens=False) or [""]
        if len(name[0]) > NAME_WIDTH:  # the figure begins on the next line
            text = ["", *text]
        num_lines = max(len(name), len(text))
        name, text = (words + [""] * (num_lines - len(words)) for words in (name, text))
        lines = [f"  {status}  {name[0]:<{NAME_WIDTH}}  {text[0]}".rstrip()]
        lines += [
            f"{' ' * indent}{left:<{NAME_WIDTH}}  {right}".rstrip()
            for left, right in zip(name[1:], text[1:], strict=True)
        ]
        if finding.fix and finding.status != "ok":
            lines.append(" " * indent + self._painted(f"$ {finding.fix}", "1"))
        return "\n".join([*self._heading(finding.group), *lines]) + "\n"

    def verdict(self, findings: Sequence[Finding], *, seconds: float) -> str:
        """The last line."""
        worst = next((status for status in ("failure", "warning") if num_of(findings, status)), "ok")
        return "\n" + self._painted(verdict(findings, seconds=seconds), f"1;{COLOURS[worst]}") + "\n"

    def _heading(self, group: str) -> list[str]:
        if group == self._group:
            return []
        first, self._group = not self._group, group
        return ([] if first else [""]) + [self._painted(group, "1")]

    def _painted(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colours else text


def num_of(findings: Sequence[Finding], status: str) -> int:
    """How many findings have this status."""
    return sum(finding.status == status for finding in findings)


def verdict(findings: Sequence[Finding], *, seconds: float) -> str:
    """What all findings together mean, in one line.

    >>> verdict([Finding("python", "ok", "3.12.1")], seconds=12.3)
    'ready to train: 1 ok, 0 warnings, 0 failures in 12 s'
    """
    num_ok, num_warnings, num_failures = (num_of(findings, status) for status in ("ok", "warning", "failure"))
    word = (
        "not ready to train" if num_failures else "ready to train, with warnings" if num_warnings else "ready to train"
    )
    counts = f"{num_ok} ok, {num_warnings} warning{'s' * (num_warnings != 1)}"
    return f"{word}: {counts}, {num_failures} failure{'s' * (num_failures != 1)} in {seconds:.0f} s"


def as_json(findings: Sequence[Finding], *, seconds: float) -> str:
    """Machine, findings and verdict as one object."""
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "num_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [finding.figures["gpu"] for finding in findings if "gpu" in finding.figures],
    }
    told = {"machine": machine, "findings": [dataclasses.asdict(finding) for finding in findings]}
    return json.dumps({**told, "verdict": verdict(findings, seconds=seconds), "seconds": seconds}, indent=2)
