"""tools.report as a user starts it."""

import shutil
import sys
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.runs.report.report import write_comparison
from tests.conftest import assert_one_error, run_fine
from tests.fakes.drawn_run import write_drawn_run
from tests.programs.launching import run_forked, run_forked_fine

REPORT = [sys.executable, "-m", "tools.report"]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, which takes seconds to draw."""
    run_dir = write_drawn_run(tmp_path_factory.mktemp("reported") / "run")
    done = run_fine(*REPORT, run_dir)
    assert done.stderr == f"report: {run_dir}/report.html\n"
    return run_dir


def test_one_run_has_its_report_in_its_folder_and_several_where_it_is_said(reported: Path, tmp_path: Path) -> None:
    first, second = reported, write_drawn_run(tmp_path / "b/run")
    assert (first / "report.html").exists()
    assert (first / "curves.png").exists()
    shutil.copy(first / "report.html", tmp_path / "both.html")  # which is overwritten
    done = run_forked_fine(*REPORT, first, second, "--output", tmp_path / "both.html")
    assert done.stderr == f"report: {tmp_path}/both.html\n"
    page = (tmp_path / "both.html").read_text()
    assert f"<th>{first}</th><th>{second}</th>" in page, "runs of one name are told by their folders"
    assert not (second / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--runs: pass a run folder"]),
        (["nowhere"], ["nowhere/run.json: cannot be read"]),
        (["a", "b"], ["--output: pass a file for the page of several runs"]),
        (["a", "--outptu", "x"], ["--outptu: unknown flag (did you mean output?)"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], parts: list[str]) -> None:
    assert_one_error(run_forked(*REPORT, *words), *parts)


def test_a_run_that_has_logged_nothing_yet_is_told(tmp_path: Path) -> None:
    run_dir = write_drawn_run(tmp_path / "run", [])
    (run_dir / "metrics.jsonl").unlink()
    assert_one_error(run_forked(*REPORT, run_dir), f"{run_dir}/metrics.jsonl: cannot be read")


def test_a_page_overwrites_nothing_but_a_report(reported: Path, tmp_path: Path) -> None:
    run_dir = write_drawn_run(tmp_path / "run")
    page, thesis = tmp_path / "page.html", tmp_path / "thesis.html"
    shutil.copy(reported / "report.html", page)
    thesis.write_text("<html>years of work</html>")
    before = page.read_bytes()
    for path, message in {
        thesis: "exists already; choose another file",
        tmp_path: "exists already; choose another file",
        tmp_path / "none" / "page.html": f"the folder {tmp_path / 'none'} does not exist; create it",
        page / "page.html": f"the folder {page} does not exist",
        tmp_path / ("x" * 300): "cannot be written (File name too long)",
        Path("/dev/null"): "exists already",
    }.items():
        with pytest.raises(UserError) as caught:
            write_comparison([run_dir], path)
        assert str(caught.value).startswith(f"--output {path}: {message}")
    assert_one_error(run_forked(*REPORT, run_dir, "--output", thesis), f"--output {thesis}: exists already")
    assert thesis.read_text() == "<html>years of work</html>"
    assert page.read_bytes() == before


def test_it_needs_no_torch() -> None:
    run_fine(
        sys.executable,
        "-c",
        "import sys; sys.modules['torch'] = None; import tools.report, pretraining.runs.report.report",
    )
