"""Which command an orphan guard watches, and how it ends its peers; test_orphans.py and test_ends.py kill real ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.system.processes import ProcessHandle, stat_words
from pretraining.training.stopping.orphan_guard import _deepspeed_runner
from pretraining.training.stopping.remote_launch import is_below_sshd
from tests.conftest import run_fine

STARTS_THE_REST = '"$@"; :'  # with `:` last, a shell does not become what it starts
# A child that waits in the phase before the first step, and its parent, which ends it.
ENDED = """
import os, sys, time
from pretraining.system.processes import ProcessHandle
from pretraining.training.stopping.orphan_guard import OrphanGuard
from pretraining.training.stopping.request import StopRequest
code, (ready, report) = int(sys.argv[1]), os.pipe()
if (child := os.fork()) == 0:
    request = StopRequest()
    request.listen()
    OrphanGuard(request).start()
    os.write(report, b"r")
    time.sleep(600)
os.read(ready, 1)
guard = OrphanGuard(StopRequest())
guard.watch({1: ProcessHandle.of(child)})
guard.end_peers(code)
found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert found == code, found
"""


def test_a_deepspeed_command_typed_through_ssh_is_watched(tmp_path: Path) -> None:
    words: list[str] = []
    for name in ("sshd", "deepspeed"):
        (tmp_path / name).symlink_to("/bin/sh")
        words += [str(tmp_path / name), "-c", STARTS_THE_REST, name]
    words += ["/bin/sh", "-c", "echo $$; read line; :", "deepspeed.launcher.launch"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sshd:
        assert sshd.stdout is not None
        launcher = int(sshd.stdout.readline())
        deepspeed = int(stat_words(launcher)[1])
        assert int(stat_words(deepspeed)[1]) == sshd.pid
        assert is_below_sshd(launcher)
        assert _deepspeed_runner(launcher) == ProcessHandle.of(deepspeed)
        sshd.communicate("")


@pytest.mark.parametrize("code", [1, 2, 75])
def test_peers_end_with_the_exit_code_of_the_run(code: int) -> None:
    run_fine(sys.executable, "-c", ENDED, code)
