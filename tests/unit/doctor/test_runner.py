"""A check that raises, ends its process or hangs is one line of the table, and ends neither doctor nor other checks."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pretraining.doctor.finding import Check, Finding, ok
from pretraining.doctor.runner import CHECKS, TOTAL_SECONDS, run_checks
from pretraining.system.processes import stat_words
from tests.fakes.doctoring import diagnose_some, find, findings

PLANTED = """
import ctypes, os, signal, subprocess, sys, time
from pretraining.doctor.finding import ok

def raises(_):
    yield ok("before", "found before it failed")
    raise RuntimeError("planted")

def leaves(_):
    sys.exit("planted")

def dies(_):
    yield ok("alive", "")
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)

def hangs(_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    yield ok("child", "", pid=child.pid)
    time.sleep(600)

def speaks(_):
    print("noise")
    os.system("echo noise >&2")
    yield ok("quiet", "")
"""


def is_running(pid: int) -> bool:
    try:
        return stat_words(pid)[0] != "Z"
    except OSError:
        return False


def test_what_goes_wrong_in_a_check_stays_there() -> None:
    done = diagnose_some("python,cores", "--json", planted=PLANTED)
    assert (done.returncode, done.stderr) == (0, "")
    names = [found["name"] for found in findings(done)]
    assert names == ["python", "cores", "before", "raises", "leaves", "alive", "dies", "child", "hangs", "quiet"]
    reasons = {
        "raises": "could not be checked (RuntimeError: planted)",
        "leaves": "could not be checked (SystemExit: planted)",
        "dies": "could not be checked (its process ended with -11)",
        "hangs": "could not be checked (no answer within 3 s)",
    }
    assert {name: find(done, name, "warning")["figure"] for name in reasons} == reasons
    pid = find(done, "child", "ok")["figures"]["pid"]
    for _ in range(100):
        if not is_running(pid):
            break
        time.sleep(0.1)
    assert not is_running(pid)


def hang(_: Sequence[Path]) -> Iterator[Finding]:
    time.sleep(600)
    yield ok("never", "")


@pytest.mark.guarantee("The doctor ends within its time, whatever hangs.")
def test_all_together_keep_their_time() -> None:
    """Checks that would take an hour: the total time cuts off the first, and the others are not started."""
    hanging = [Check("host", f"number {number}", hang, 900.0) for number in range(3)]
    cut_off, *left = run_checks(hanging, [], total_seconds=1.0)
    assert cut_off.figure.startswith("could not be checked (no answer within ")
    assert [finding.figure for finding in left] == ["could not be checked (no time left of 1 s)"] * 2
    assert TOTAL_SECONDS < 60
    assert all(check.limit_seconds < TOTAL_SECONDS / 2 for check in CHECKS)


def test_every_check_is_there() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) > 20
    groups = list(dict.fromkeys(check.group for check in CHECKS))
    assert groups == ["software", "host", "disk", "Hub", "GPUs", "speed"]
    assert [check.group for check in CHECKS] == sorted((check.group for check in CHECKS), key=groups.index)
