"""Results of the comparison as a section of docs/benchmarks/preprocess.md."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.preprocess.arms import OURS, ArmResult, BenchmarkArguments
from benchmarks.preprocess.plot import draw_plot
from benchmarks.preprocess.token_counts import InputCounts
from benchmarks.results import command_line, hardware, spread, table, versions, write_section

PACKAGES = ("tokenizers", "fastokens", "transformers", "datasets", "pyarrow", "datatrove", "gigatoken", "torch")
SPEED_TITLES = ("arm", "seconds", "MB/s", "peak memory, MB", f"time / {OURS}'s", "seconds to start")
TOKEN_TITLES = ("arm", "tokens written", "of them special", "text tokens missing", "text tokens too many")
EXPLANATION = """\
Each figure is the median of {repetitions} runs (and the least and the most). A run is a fresh process, timed from
start to exit, its input in the page cache and its output folder gone; the arms take turns. MB are 1,000,000 bytes, for
speed those of the texts in UTF-8. Memory is the largest sum of PSS (proportional set size) over the process tree,
sampled every 50 ms or less often. The ratio is that of the medians (the least and the most of the single rounds). To
start is the faster of two runs over {trial_documents} documents, most of it imports."""
TOKEN_EXPLANATION = """\
Every id in an arm's output is counted, special tokens (BOS, EOS) apart, and held against the ids that tokenizer.json
itself gives for the same texts, where text such as `</s>` is text. A dropped tail leaves ids missing; a changed
tokenization leaves some missing and others too many. `preprocess.py` leaves out what each split has beyond its last
whole block; the streams of datatrove and Megatron-LM are cut only when a model is trained."""


def report(arguments: BenchmarkArguments, results: Sequence[ArmResult], counts: InputCounts, num_trial: int) -> None:
    """Write section and plot; the first of `results` is what the others are compared with."""
    done = [result for result in results if result.series.usages]
    draw_plot(done, counts.text_bytes, arguments.results_dir / "preprocess.svg")
    paragraphs = [
        f"{hardware()}; {versions(PACKAGES)}{megatron_version(arguments.megatron_dir)}.",
        command_line("preprocess"),
        describe_input(arguments, counts),
        table(SPEED_TITLES, [speed_row(result, results[0], counts.text_bytes) for result in results]),
        "![MB/s and memory of each arm](preprocess.svg)",
        EXPLANATION.format(repetitions=arguments.repetitions, trial_documents=num_trial),
        table(TOKEN_TITLES, [token_row(result) for result in done]),
        TOKEN_EXPLANATION,
        "\n".join(f"- `{result.arm.name}`: {result.arm.description}" for result in results),
    ]
    write_section(arguments.results_dir / "preprocess.md", "Against other programs", "\n\n".join(paragraphs))


def describe_input(arguments: BenchmarkArguments, counts: InputCounts) -> str:
    """Description of the input."""
    return (
        f"Input: `{arguments.data_files.name}`, {arguments.data_files.stat().st_size:,} bytes with "
        f"{counts.num_documents:,} documents, {counts.text_bytes:,} bytes of text, {counts.num_tokens:,} tokens by the "
        f"tokenizer `{arguments.tokenizer.name}`; blocks of {arguments.block_length:,}."
    )


def speed_row(result: ArmResult, ours: ArmResult, text_bytes: int) -> list[str]:
    """A program's row in the table of speeds, or its error."""
    name, series = f"`{result.arm.name}`", result.series
    if not series.usages:
        return [name, f"not run: {series.failure}", *[""] * (len(SPEED_TITLES) - 2)]
    return [
        name,
        spread(series.seconds),
        spread(series.megabytes_per_second(text_bytes)),
        spread(series.peak_megabytes, 0),
        "1" if result is ours else ratio(series.seconds, ours.series.seconds),
        f"{min(result.trial.seconds):.1f}",
    ]


def ratio(seconds: Sequence[float], our_seconds: Sequence[float]) -> str:
    """Ratio of the medians, with the range over the rounds."""
    quotients = [theirs / ours for theirs, ours in zip(seconds, our_seconds, strict=True)]
    middle = f"{median(seconds) / median(our_seconds):.2f}"
    return middle if len(quotients) == 1 else f"{middle} ({min(quotients):.2f} to {max(quotients):.2f})"


def token_row(result: ArmResult) -> list[str]:
    """A program's row in the table of tokens."""
    counts = result.counts
    assert counts is not None
    numbers = (counts.num_tokens, counts.num_special, counts.num_missing, counts.num_foreign)
    return [f"`{result.arm.name}`", *(f"{number:,}" for number in numbers)]


def megatron_version(megatron_dir: Path | None) -> str:
    """The version of a Megatron-LM checkout."""
    if megatron_dir is None:
        return ""
    return f", Megatron-LM {runpy.run_path(str(megatron_dir / 'megatron/core/package_info.py'))['__version__']}"
