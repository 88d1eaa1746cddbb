"""Models side by side: a table of their metrics on held-out text, and their completions of the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pretraining.evaluation.text_statistics import SHOWN_CHARACTERS, CompletionLike, distinct, format_orders, repetition
from pretraining.system.formatting import shorten

if TYPE_CHECKING:
    from pretraining.evaluation.held_out import HeldOutMetrics, Metrics

HEADINGS = ("documents", "tokens", "loss", "perplexity", "accuracy", "bits/byte")


def metrics_lines(metrics: Mapping[str, HeldOutMetrics]) -> Iterator[str]:
    """Of one model a row per source and their total, of several models their totals, in aligned columns."""
    if not metrics:
        return
    rows = [(name, one.total) for name, one in metrics.items()]
    if len(rows) == 1:
        (sources,) = [one.sources for one in metrics.values()]
        rows = [*(sources.items() if len(sources) > 1 else ()), ("total", rows[0][1])]
    first = "source" if len(metrics) == 1 else "model"
    cells = [(first, *HEADINGS), *((name, *_format_metrics(values)) for name, values in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *values in cells:
        yield "  ".join([f"{name:<{widths[0]}}", *map(str.rjust, values, widths[1:])])


def _format_metrics(values: Metrics) -> list[str]:
    """The cells below HEADINGS; unknown metrics are empty."""
    bits, num_documents = values.get("bits_per_byte"), values.get("num_documents")
    return [
        "" if num_documents is None else f"{num_documents:,.0f}",
        f"{values['num_tokens']:,.0f}",
        f"{values['loss']:.4f}",
        f"{values['perplexity']:,.2f}",
        f"{values['accuracy']:.1%}",
        "" if bits is None else f"{bits:.4f}",
    ]


def comparison_lines(prompts: Sequence[str], completions: Mapping[str, Sequence[CompletionLike]]) -> Iterator[str]:
    """Repetition and diversity of each model, then for each prompt the beginning of each model's completion."""
    width = max(map(len, completions), default=0)
    for model, some in completions.items():
        tokens = [completion.tokens for completion in some]
        rates = format_orders("rep", repetition(tokens)), format_orders("distinct", distinct(tokens))
        yield f"{model:<{width}} {'  '.join(rates)}"
    for number, prompt in enumerate(prompts):
        yield f"\n{prompt}"
        for model, some in completions.items():
            yield f"{model:<{width}} {shorten(some[number].text, SHOWN_CHARACTERS)}"
