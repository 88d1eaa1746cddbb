"""A process that ends the others of its machine gives them its exit code, from the start of a run on."""

import sys

import pytest

from tests.conftest import run_fine

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


@pytest.mark.parametrize("code", [1, 2, 75])
def test_peers_end_with_the_exit_code_of_the_run(code: int) -> None:
    run_fine(sys.executable, "-c", ENDED, code)
