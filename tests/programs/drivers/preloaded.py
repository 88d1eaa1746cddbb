"""Starts scripts in forks of a process that has everything imported, which takes a start from ten seconds to one.

Reads jobs as JSON lines, answers each with the exit code of its first rank that failed, or 0. What stands between the
ranks of a job is what torchrun sets.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    import deepspeed  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401

    import pretraining.training.run  # noqa: F401

    for line in sys.stdin:
        answers.write(f"{run_job(json.loads(line))}\n")
        answers.flush()


def run_job(job: dict[str, Any]) -> int:
    """Fork the ranks, wait for them; when one fails, end the others."""
    running = {fork_rank(job, rank) for rank in range(job["num_ranks"])}
    failed = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in running:
                os.kill(other, signal.SIGTERM)
    return failed


def fork_rank(job: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.environ.update(job["env"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["num_ranks"]))
    os.environ.update(LOCAL_WORLD_SIZE=str(job["num_ranks"]), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
    sys.argv = job["argv"]
    sys.path.insert(0, str(Path(job["argv"][0]).parent))
    code = 1
    try:
        runpy.run_path(job["argv"][0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
