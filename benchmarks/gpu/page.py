"""The page of benchmarks.gpu: measured rows, and rows that are not measured yet."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.rows import Row
from benchmarks.results import table

NOT_MEASURED = "not yet measured"
TITLES = ("row", "steps", "tokens/s/GPU", "MFU, full", "MFU, causal", "GB at most", "first loss", "loss at the end")
WORDS = """Each row is the first one with the named change, in a separate run. Tokens/s/GPU are over all steps but
the first, waiting for data and the optimizer's step included. MFU counts full attention, or half its square (causal),
never recomputation. All rows start from the same weights and blocks, so the first losses are equal up to rounding.
Losses at the end are comparable between rows of equal steps. Memory is the most that was allocated at once per GPU,
without what the allocator keeps beside it."""


def page(rows: Sequence[Row], found: dict[str, Any], *, is_small: bool) -> str:
    """The page as Markdown, with every row of `rows`."""
    title = "# The quickstart's model, setting by setting" if is_small else "# Llama-2-7B on GPUs, setting by setting"
    command = "    python3 -m benchmarks.gpu" + (" --small" if is_small else "")
    lines = [_cells(row, found["rows"].get(row.name)) for row in rows]
    sections = [title, *_machine(found.get("machine")), command, table(TITLES, lines), WORDS]
    sections += [_stage(name, figures) for name, figures in found.get("stages", {}).items()]
    failed = [f"- {name}: `{row['failed']}`" for name, row in found["rows"].items() if "failed" in row]
    if failed:
        sections.append("What failed:\n\n" + "\n".join(failed))
    commands = [f"    {row['command']}" for row in found["rows"].values()]
    if commands:
        sections.append("The commands:\n\n" + "\n".join(commands))
    return "\n\n".join(sections) + "\n"


def _stage(name: str, figures: dict[str, Any]) -> str:
    """A stage of --slot as a section: its error, or what it has found."""
    if "failed" in figures:
        return f"## {name[0].upper()}{name[1:]}\n\nFailed: `{figures['failed']}`"
    texts = [f"Done in {figures['seconds']:.0f} s."]
    texts += [f"{key.capitalize()}: `{figures[key]}`" for key in ("text", "result") if key in figures]
    if "costs" in figures:
        texts.append("The ten largest costs:\n\n```\n" + figures["costs"].strip() + "\n```")
    decoders = [[key, *_rates(value)] for key, value in figures.items() if isinstance(value, dict)]
    if decoders:
        texts.append(table(("greedy, from 16 to 80 tokens", "tokens/s, 1 row", "tokens/s, 32 rows"), decoders))
    return f"## {name[0].upper()}{name[1:]}\n\n" + "\n\n".join(texts)


def _rates(figures: dict[str, Any]) -> list[str]:
    if "failed" in figures:
        return [f"failed: {figures['failed']}", ""]
    return [f"{figures[name]:,.0f}" for name in ("tokens_per_second_1", "tokens_per_second_32")]


def _machine(machine: dict[str, Any] | None) -> list[str]:
    if machine is None:
        return ["No GPU was available, so no row is measured yet. On a machine with GPUs:"]
    gpus = " and ".join(f"{count} x {name}" for name, count in Counter(machine["gpus"]).items()) or "no GPU"
    figures = [f"{machine['hardware']}; {gpus}; {machine['versions']}."]
    return [*figures, *(f"{line}." for line in machine["speeds"])]


def _cells(row: Row, figures: dict[str, Any] | None) -> list[str]:
    if figures is None or "failed" in figures:
        return [row.name, "", NOT_MEASURED if figures is None else "failed", *[""] * (len(TITLES) - 3)]
    memory = figures["peak_memory_bytes"]
    return [
        row.name,
        str(figures["num_steps"]),
        f"{figures['tokens_per_second_per_gpu']:,.0f}",
        _percent(figures["mfu"]),
        _percent(figures["mfu_causal"]),
        "" if memory is None else f"{memory / 1e9:.1f}",
        f"{figures['first_loss']:.4f}",
        f"{figures['last_loss']:.4f}",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
