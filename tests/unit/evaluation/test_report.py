"""Completions of several models side by side, in lines of bounded length."""

from pretraining.evaluation.report import SavedCompletion, comparison_lines


def completion(text: str, tokens: list[int]) -> SavedCompletion:
    return SavedCompletion("a", text, tokens, "length")


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
