"""tools.compare_samples as a user starts it: what generate.py writes, from every checkpoint, in lines and in a page."""

import sys
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.generation.compare import ModelSamples, comparison_lines, comparison_page, models_to_compare
from tests.conftest import PROJECT_DIR, assert_one_error, python, run, run_fine
from tests.fakes.browser import DARK, look_at

COMPARE = [sys.executable, "-m", "tools.compare_samples"]
SCRIPT = "<script>document.title = 'taken over'</script>"


@pytest.mark.launch
def test_each_checkpoint_writes_what_generate_writes(trained_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["--prompts", "The council", "Scientists have", "--max_new_tokens", 8, "--seed", 3, "--output", page]
    done = run_fine(*COMPARE, trained_run, *words, "--held_out", PROJECT_DIR / "data/sample/news.jsonl")
    heading, first, second, *_ = done.stdout.splitlines()
    assert heading.split()[:4] == ["loss", "perplexity", "accuracy", "bits/byte"]
    assert heading.split()[4:] == [f"rep-{n}" for n in (1, 2, 3, 4)] + [f"distinct-{n}" for n in (1, 2, 3, 4)]
    assert [line.split()[0] for line in (first, second)] == ["checkpoint-3", "checkpoint-6"]
    assert float(second.split()[1]) < float(first.split()[1]), "it has learned something"
    words = ["--prompt", "The council", "--max_new_tokens", 8, "--seed", 3]
    text = run_fine(*python("generate.py", "--model", trained_run / "checkpoint-3", *words)).stdout
    expected = " ".join(text.removeprefix("The council").split())
    assert f"checkpoint-3 {expected}\n" in done.stdout


def test_the_page_opens_anywhere_and_takes_no_text_for_html(tmp_path: Path) -> None:
    models = [
        ModelSamples("checkpoint-40", [SCRIPT, "word " * 80], {"loss": "6.5", "rep-1": "20.0%"}),
        ModelSamples("a/long/path/of/a/model/" * 4, ["\n\nx", "w" * 400], {f"figure-{n}": "1.0%" for n in range(12)}),
    ]
    page = tmp_path / "page.html"
    page.write_text(comparison_page("run", ["The <b>", "Scientists have"], models, ["A note."]), "utf-8")
    seen = look_at(page, widths=(1400, 400, 320), scheme=DARK)
    assert seen.console == []
    for frame in seen.frames:
        assert frame["title"] == "run"
        assert frame["scroll_width"] == frame["width"], "only the table of figures may be wider, in itself"
        assert [request for request in frame["requests"] if not request.startswith("data:")] == []
        assert SCRIPT in frame["text"]
        assert "The <b>" in frame["text"]
    lines = "\n".join(comparison_lines(["a", "b"], models))
    assert max(map(len, lines.splitlines())) < 300


def test_which_models_are_compared(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "exports/step-5").mkdir(parents=True)
    (run_dir / "run.json").write_text('{"arguments": {"max_steps": 9}}')
    assert models_to_compare([str(run_dir)]) == {str(run_dir / "exports/step-5"): str(run_dir / "exports/step-5")}
    (run_dir / "model").mkdir()
    found = {"step-5": str(run_dir / "exports/step-5"), "model": str(run_dir / "model")}
    assert models_to_compare([str(run_dir)]) == found
    assert models_to_compare(["someone/a", "someone/b"]) == {"someone/a": "someone/a", "someone/b": "someone/b"}
    with pytest.raises(UserError, match="is named twice"):
        models_to_compare(["someone/a", "someone/a"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.json").write_text('{"arguments": {"max_steps": 9}}')
    with pytest.raises(UserError, match="neither an exported model nor a complete checkpoint"):
        models_to_compare([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--models: give a run folder, or several models"),
        (["a", "--prompts", ""], "--prompts: is empty"),
        (["a", "--max_new_tokens", "0"], "--max_new_tokens 0: must be in [1, 1e6]"),
        (["a", "--seed", "-1"], "--seed -1: must be in [0, 4294967295]"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], part: str) -> None:
    assert_one_error(run(*COMPARE, *words), part)
