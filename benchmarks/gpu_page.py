"""The page of benchmarks.gpu: measured rows, and rows that are not measured yet."""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_rows import Row
from benchmarks.results import table

NOT_MEASURED = "not yet measured"
TITLES = ("row", "tokens/s/GPU", "MFU, full", "MFU, causal", "GB at most", "first loss", "loss at the end")
WORDS = """Each row is the first one with the named change, in a separate run. Tokens/s/GPU are over all steps but
the first, waiting for data and the optimizer's step included. MFU counts full attention, or half its square (causal),
never recomputation. All rows start from the same weights and blocks, so the first losses are equal up to rounding.
Memory is the peak of torch's allocator."""


def page(rows: Sequence[Row], found: dict[str, Any], *, is_small: bool) -> str:
    """The page as Markdown, with every row of `rows`."""
    title = "# The quickstart's model, setting by setting" if is_small else "# Llama-2-7B on GPUs, setting by setting"
    command = "    python3 -m benchmarks.gpu" + (" --small" if is_small else "")
    lines = [_cells(row, found["rows"].get(row.name)) for row in rows]
    sections = [title, *_machine(found.get("machine")), command, table(TITLES, lines), WORDS]
    failed = [f"- {name}: `{row['failed']}`" for name, row in found["rows"].items() if "failed" in row]
    if failed:
        sections.append("What failed:\n\n" + "\n".join(failed))
    commands = [f"    {row['command']}" for row in found["rows"].values()]
    if commands:
        sections.append("The commands:\n\n" + "\n".join(commands))
    return "\n\n".join(sections) + "\n"


def _machine(machine: dict[str, Any] | None) -> list[str]:
    if machine is None:
        return ["No GPU was available, so no row is measured yet. On a machine with GPUs:"]
    figures = [f"{machine['hardware']}; {machine['num_gpus']} GPUs; {machine['versions']}."]
    return [*figures, *(f"{line}." for line in machine["speeds"])]


def _cells(row: Row, figures: dict[str, Any] | None) -> list[str]:
    if figures is None or "failed" in figures:
        return [row.name, NOT_MEASURED if figures is None else "failed", *[""] * (len(TITLES) - 2)]
    memory = figures["peak_memory_bytes"]
    return [
        row.name,
        f"{figures['tokens_per_second_per_gpu']:,.0f}",
        _percent(figures["mfu"]),
        _percent(figures["mfu_causal"]),
        "" if memory is None else f"{memory / 1e9:.1f}",
        f"{figures['first_loss']:.4f}",
        f"{figures['last_loss']:.4f}",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
