"""Runs command lines of our programs, each in a fork of this process, which has imported everything already.

Reads JSON lines {"program", "argv", "env", "uid", "folder", "seconds"}, answers each with {"code", "stdout", "stderr"};
a command that takes longer is killed and has the code null. Bytes of its words that are not UTF-8 are surrogates.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).parents[3]
POLL_SECONDS = 0.002

sys.path.insert(0, str(PROJECT_DIR))

from pretraining.cli import program  # noqa: E402 - of the checkout of this file
from pretraining.cli.program import importing_libraries, run_program  # noqa: E402

program.RANK0_GRACE_SECONDS = 0.0  # there is no rank 0 that could report more

with importing_libraries():
    PROGRAMS = {name: importlib.import_module(name) for name in sys.argv[1:]}
    for lazily_imported in ("fastokens", "datasketch", "pretraining.data.hub.upload", "pretraining.data.input.hub"):
        importlib.import_module(lazily_imported)


def become(command: dict[str, Any]) -> None:
    """Let this fork be the process that the command starts."""
    os.setpgid(0, 0)
    os.chdir(command["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.environ.update(command["env"])
    if command["uid"]:
        os.setgroups([])
        os.setgid(command["uid"])
        os.setuid(command["uid"])
    sys.argv = [f"{command['program']}.py", *command["argv"]]
    run_program(PROGRAMS[command["program"]].main)
    sys.stdout.flush()
    os._exit(0)


def wait_for(process: int, seconds: float) -> int | None:
    """The exit code; None for a process that had to be killed."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


for line in sys.stdin:
    command = json.loads(line)
    process = os.fork()
    if not process:
        try:
            become(command)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(99)
    code = wait_for(process, command["seconds"])
    texts = {name: Path(command["folder"], name).read_text(errors="replace") for name in ("stdout", "stderr")}
    print(json.dumps({"code": code, **texts}), flush=True)  # noqa: T201 - its answer
