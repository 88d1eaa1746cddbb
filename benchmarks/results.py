"""Pages of results: sections that are replaced one by one, tables, hardware and versions."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from pretraining.system.host import processor_name

PROJECT_DIR = Path(__file__).parent.parent
MEGABYTE = 1e6


def write_section(page: Path, title: str, text: str) -> None:
    """Replace the section `title` of `page`, or append it."""
    heading = f"## {title}\n"
    before, _, rest = (page.read_text(encoding="utf-8") if page.exists() else "# Results").partition(heading)
    _, next_heading, after = rest.partition("\n## ")
    page.write_text(f"{before.rstrip()}\n\n{heading}\n{text.strip()}\n{next_heading}{after}", encoding="utf-8")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all but its first column aligned to the right."""
    marks = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, marks, *rows])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, minimum and maximum: `6.3 (6.1 to 6.4)`."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def hardware() -> str:
    """Processor, cores and memory of this machine."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{processor_name()}, {num_cores()} cores, {memory_bytes / 1e9:.0f} GB of memory"


def versions(packages: Iterable[str]) -> str:
    """Commit of this project, Python, and the installed ones among `packages`."""
    found = [f"commit {_commit()}", f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def command_line(program: str) -> str:
    """The command line of this program as a code block, with the names of files instead of their paths."""
    return f"    python -m benchmarks.{program} {' '.join(Path(word).name for word in sys.argv[1:])}"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
