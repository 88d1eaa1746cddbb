"""The report of a run is written beside the training, which neither changes by it nor minds when that fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretraining.errors import STOPPED_EXIT_CODE
from pretraining.runs.compare import first_difference
from pretraining.system.processes import ProcessHandle
from tests.conftest import PROJECT_DIR
from tests.programs.launching import train, try_to_train

EVALUATED = ["--eval_steps", 3, "--save_steps", 4, "--report", "true"]


@pytest.fixture(scope="module")
def unreported(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unreported") / "run"
    train("1 rank", sample_store, run_dir, *EVALUATED, "--report", "false")
    assert not (run_dir / "report.html").exists()
    return run_dir


@pytest.mark.launch
@pytest.mark.guarantee("With and without a report the run is the same, bit by bit.")
def test_a_run_with_a_report_is_the_run_without(unreported: Path, sample_store: Path, tmp_path: Path) -> None:
    done = train("1 rank", sample_store, tmp_path / "run", *EVALUATED)
    assert first_difference(unreported, tmp_path / "run") is None
    assert f"report: {tmp_path}/run/report.html (open it in a browser: loss, speed, " in done.stderr
    page = (tmp_path / "run/report.html").read_text()
    assert '<span class="state">finished</span>' in page
    assert "<dt>test loss</dt>" in page
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.launch
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("fails", "No module named tests.faults.no_such_module"),
        pytest.param("hangs", "it took longer than 1 s", marks=pytest.mark.long),
        pytest.param("cannot start", "[Errno 2] No such file or directory: '/nowhere/python3'", marks=pytest.mark.long),
    ],
)
@pytest.mark.guarantee("A report that fails is a warning.")
def test_a_report_that_fails_is_one_warning(
    how: str, said: str, unreported: Path, sample_store: Path, tmp_path: Path
) -> None:
    script, env = "tests/faults/drivers/report/unreported_run.py", {"UNREPORTED": how}
    done = train("1 rank", sample_store, tmp_path / "run", *EVALUATED, script=script, env=env)
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: report.html:")]
    assert said in warning
    assert "Traceback" not in done.output
    assert first_difference(unreported, tmp_path / "run") is None
    if how == "hangs":
        assert not Path("/proc", (tmp_path / "run/report.pid").read_text()).exists()


@pytest.mark.long  # of one that ends: test_a_run_with_a_report_is_the_run_without
@pytest.mark.launch
def test_a_run_that_stops_has_its_report(sample_store: Path, tmp_path: Path) -> None:
    script, env = "tests/faults/drivers/interrupted_run.py", {"AT": "step:5", "DO": "kill(me, SIGTERM)"}
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", *EVALUATED, script=script, env=env)
    assert done.returncode == STOPPED_EXIT_CODE, done.output[-4000:]
    assert '<span class="state">stopped (SIGTERM)</span>' in (tmp_path / "run/report.html").read_text()


def test_no_report_outlives_its_run(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("killed", 1)
    script = (
        "import time\nfrom pathlib import Path\nfrom pretraining.runs.report import background as report_process\n"
        "report_process.MODULE = 'tests.faults.drivers.report.endless_report'\n"
        f"report_process.ReportProcess(Path({str(tmp_path)!r})).start()\ntime.sleep(600)"
    )
    env = {**os.environ, "RANK": "0", "OMPI_COMM_WORLD_RANK": "0"}
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT_DIR, env=env)
    try:
        told = tmp_path / "report.pid"
        while not (told.exists() and told.read_text()):
            assert parent.poll() is None
            time.sleep(0.02)
        process = ProcessHandle.of(int(told.read_text()))
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert not [words for words in environment if words.startswith((b"RANK=", b"OMPI_"))]
        assert os.getpgid(process.pid) == process.pid, "a Ctrl-C does not reach it"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        while process.is_alive():
            time.sleep(0.02)
    finally:
        parent.kill()
