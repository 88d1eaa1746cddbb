"""What a first run shows: on terminals of several widths, in a file, and of the launcher's own lines."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, python, run
from tests.programs.launching import SEARCH_PATH, launcher, run_forked, run_preloaded, training_flags

pytestmark = pytest.mark.launch

FLAGS = ["--max_steps", 4, "--eval_steps", 4, "--save_steps", 2, "--sample_steps", 2, "--report", "true"]
FLAGS += ["--deepspeed", PROJECT_DIR / "ds_config.json"]
OF_LAUNCHER = re.compile(r"\[20\d\d-.*\] \[(INFO|WARNING|ERROR)\] \[(runner|launch)\.py")
QUIET = "--log_level=warning"
# How the lines of the end begin, in their order.
END = ["report: run/report.html (", "exported model: run/model (", "checkpoints: run/checkpoint-4, the newest of 2"]
END += ["run folder: run (", "next: python3 generate.py --model run --prompt "]


def terminal(columns: int) -> tuple[int, int]:
    """Both ends of a terminal of so many columns, ours and that of a program."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return ours, theirs


def forked_in_terminal(columns: int, *words: object, cwd: Path) -> str:
    """Like `in_terminal`, for pretrain.py in a fork of the preloaded process."""
    ours, theirs = terminal(columns)
    env = {"TERMINAL": os.ttyname(theirs), "PYTHONPATH": SEARCH_PATH}
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run_forked, *python("tests/programs/monitor/terminal_run.py", *words), cwd=cwd, env=env)
        running.add_done_callback(lambda _: os.close(theirs))  # after which reading ends
        shown = all_of(ours)
    assert running.result().returncode == 0, shown[-6000:]
    return shown


def in_terminal(columns: int, *words: object, cwd: Path) -> str:
    """All that a program writes onto a terminal of so many columns; it must succeed."""
    ours, theirs = terminal(columns)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    child = subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = all_of(ours)
    assert child.wait() == 0, shown[-6000:]
    return shown


def all_of(terminal_end: int) -> str:
    """What is written until nobody holds the other end any more."""
    pieces = []
    while piece := _read(terminal_end):
        pieces.append(piece)
    os.close(terminal_end)
    return b"".join(pieces).decode()


def _read(terminal_end: int) -> bytes:
    try:
        return os.read(terminal_end, 1 << 16)
    except OSError:  # nobody holds the other end any more
        return b""


def lines_of(shown: str) -> list[str]:
    """Each state of each line, a bar's too, without the launcher's own lines."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    return [line for line in lines if not OF_LAUNCHER.match(line)]


def without_warnings(lines: list[str]) -> list[str]:
    """The lines that are wrapped: a warning, e.g. of little memory, is one line, so that it can be searched."""
    return [line for line in lines if not line.startswith("warning: ")]


def assert_ends_in_order(lines: list[str], end: list[str]) -> None:
    places = [next(place for place, line in enumerate(lines) if line.startswith(begin)) for begin in end]
    assert places == sorted(places)
    assert not [line for line in lines[places[0] :] if not line.startswith((*end, "    ")) and line], "and nothing else"


# deepspeed is long, as is test_a_launcher_reports_what_fails_and_logs_as_much_as_requested, which reads its lines. 200
# columns are long as well: 80, which more lines exceed, and 120 in a file hold the same of lines, and of the bar at
# other widths test_on_a_terminal_a_bar_has_the_figures_that_fit.
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("fork", 80),
        pytest.param("deepspeed", 80, marks=pytest.mark.long),
        pytest.param("python", 200, marks=pytest.mark.long),
    ],
)
def test_no_line_is_wider_than_the_terminal(name: str, columns: int, sample_store: Path, tmp_path: Path) -> None:
    has_report = name != "fork"  # tests/faults/test_reports.py has its line as well
    flags = training_flags(sample_store, Path("run"), *FLAGS, "--report", str(has_report).lower())
    if name == "fork":
        shown = forked_in_terminal(columns, *flags, cwd=tmp_path)
    else:
        words = [*launcher(name), *([QUIET] if name == "deepspeed" else []), PROJECT_DIR / "pretrain.py"]
        shown = in_terminal(columns, *words, *flags, cwd=tmp_path)
    lines = lines_of(shown)
    assert max(map(len, without_warnings(lines))) <= columns
    bars = [line for line in lines if line.startswith("step ") and "|" in line]
    assert max(map(len, bars)) > columns - 5, "a bar is as wide as its terminal"
    assert "[INFO]" not in shown
    assert "/GPU" not in shown
    assert "tokens/s per process" in shown
    num_processes = "2 processes" if name == "deepspeed" else "1 process"
    assert [line for line in lines if line.startswith("step: ") and f" x {num_processes}, ZeRO-3" in line]
    assert_ends_in_order(lines, END if has_report else END[1:])


def test_in_a_file_lines_have_120_columns(sample_store: Path, tmp_path: Path) -> None:
    words = [PROJECT_DIR / "pretrain.py", *training_flags(sample_store, Path("run"), *FLAGS, "--report", "false")]
    done = run_preloaded(1, words, {}, cwd=tmp_path)
    assert done.returncode == 0, done.output[-6000:]
    lines = lines_of(done.log)
    assert 100 < max(map(len, without_warnings(lines))) <= 120
    assert [line[:9] for line in lines if "  loss " in line and " left" in line] == [
        f"step {n}/4 " for n in range(1, 5)
    ]
    assert_ends_in_order(lines, END[1:])


# Held by test_two_ranks_report_a_mistake_once and, for the launcher, by the next test and by
# test_ranks_that_deepspeed_starts_give_the_same_run.
@pytest.mark.long
@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_launcher_reports_what_fails_and_logs_as_much_as_requested(is_quiet: bool) -> None:
    words = [*launcher("deepspeed"), *([QUIET] if is_quiet else [])]
    done = run(*words, *python("pretrain.py", "--dataset", "nowhere")[1:])
    assert done.returncode == 2
    assert len(done.errors) == 1
    assert "[ERROR] [launch.py" in done.stdout
    for program in ("runner", "launch"):
        assert (f"[INFO] [{program}.py" in done.output) == (not is_quiet)
    assert ("[INFO]" in done.output) == (not is_quiet)


def test_the_quickstart_starts_a_quiet_launcher() -> None:
    starts = [
        line for line in (PROJECT_DIR / "recipes/quickstart/run.sh").read_text().splitlines() if ".runner" in line
    ]
    assert len(starts) == 1
    assert f"deepspeed.launcher.runner {QUIET} " in starts[0]
