"""Models side by side: aligned columns whatever is in them, and completions in lines of bounded length."""

import pytest

from pretraining.evaluation.comparison import HEADINGS, comparison_lines, metrics_lines
from pretraining.evaluation.completion_file import SavedCompletion
from pretraining.evaluation.held_out import HeldOutMetrics


def completion(text: str, tokens: list[int]) -> SavedCompletion:
    return SavedCompletion("a", text, tokens, "length")


BLOCKS = {"num_tokens": 12.0, "loss": 2.5, "perplexity": 12.18, "accuracy": 0.25}
LARGE = {"num_tokens": 3e12, "loss": 12.3456, "perplexity": 987_654_321.5, "accuracy": 1.0}
LARGE |= {"num_documents": 4_000_000_000.0, "bits_per_byte": 0.9876}


@pytest.mark.parametrize("names", [("a", "runs/a-long-name/checkpoint-1000"), ("one", "two")])
def test_columns_are_aligned_however_long_names_and_figures_are(names: tuple[str, str]) -> None:
    found = {name: HeldOutMetrics(total, {}) for name, total in zip(names, (BLOCKS, LARGE), strict=True)}
    heading, blocks, large = lines = list(metrics_lines(found))
    assert heading.split() == ["model", *HEADINGS]
    assert blocks.split() == [names[0], "12", "2.5000", "12.18", "25.0%"]
    assert large.split()[1:] == ["4,000,000,000", "3,000,000,000,000", "12.3456", "987,654,321.50", "100.0%", "0.9876"]
    assert len({len(line) for line in lines}) == 1, lines
    for word, cell in zip(heading.split()[2:6], blocks.split()[1:], strict=True):
        assert heading.index(word) + len(word) == blocks.index(f" {cell}") + 1 + len(cell), word


def test_sources_and_their_total_are_shown_of_one_model() -> None:
    lines = list(metrics_lines({"model": HeldOutMetrics(LARGE, {"news": BLOCKS, "wiki": LARGE})}))
    assert [line.split()[0] for line in lines] == ["source", "news", "wiki", "total"]
    assert [line.split()[0] for line in metrics_lines({"model": HeldOutMetrics(LARGE, {"news": LARGE})})][1:] == [
        "total"
    ]
    assert list(metrics_lines({})) == []


def test_models_are_shown_side_by_side() -> None:
    long_name = "a/long/path/of/a/model/" * 4
    completions = {
        "checkpoint-40": [completion("one\n\n two", [1, 1]), completion("word " * 80, [2])],
        long_name: [completion("\n\nx", [3, 4]), completion("w" * 400, [5])],
    }
    lines = "\n".join(comparison_lines(["The prompt", "Another"], completions)).splitlines()
    width = len(long_name)
    assert lines[0] == f"{'checkpoint-40':<{width}} rep-1 25.0%  rep-2 0.0%  distinct-1 66.7%  distinct-2 33.3%"
    assert lines[2:5] == ["", "The prompt", f"{'checkpoint-40':<{width}} one two"]
    assert lines[5] == f"{long_name} x"
    assert lines[-1] == f"{long_name} {'w' * 99}…"
    assert max(map(len, lines)) < 300
