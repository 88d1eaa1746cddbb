"""A report on completions: lines and JSON have the same figures; what was not measured is in neither."""

from pretraining.evaluation.completion_file import SavedCompletion
from pretraining.evaluation.memorization import CopiedFigures
from pretraining.evaluation.report import CompletionReport
from pretraining.evaluation.text_statistics import text_statistics

COMPLETIONS = [SavedCompletion("a", "x y", [1, 2, 1, 2], "eos"), SavedCompletion("a", "z", [3], "length")]
ROW = {"sample": 2, "num_tokens": 9, "file": "news.jsonl", "line": 7, "text": "word " * 80}


def test_only_what_was_measured_is_reported() -> None:
    alone = CompletionReport(text_statistics(COMPLETIONS), None, None)
    assert [line.split()[0] for line in alone.lines()] == ["completions", "length", "repetition", "diversity"]
    assert not alone.as_json().keys() & {"perplexity", "copied_share", "copied_runs"}


def test_perplexity_and_copied_text_follow_the_statistics() -> None:
    copied = CopiedFigures(num_continuations=2, copied_share=0.5, copied_runs=[ROW])
    perplexity = {"continuations": 12.3, "held_out": None}
    report = CompletionReport(text_statistics(COMPLETIONS), perplexity, copied)
    *_, likelihood, share, run = report.lines()
    assert likelihood == "perplexity     12.30 on completions"
    assert share.startswith("copied         50.0% of the tokens; 1 of 2 completions have a run of 8 tokens or more")
    assert run.startswith("     9 tokens of completion 2, in news.jsonl:7: word word")
    assert len(run) < 200
    found = report.as_json()
    assert (found["perplexity"], found["copied_share"], found["num_continuations"]) == (perplexity, 0.5, 2)
