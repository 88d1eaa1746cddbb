"""A process of a run with --restarts whose worker imports no torch and so starts at once: supervised.py LIMIT FOLDER

DOES={"0-1": ...} says what the worker of attempt 0 and rank 1 does: end with a number, kill itself by a signal's name,
or, without a word, wait until a signal comes and end with DOES["asked"] or 75. It leaves its environment and the
signals it gets in FOLDER, and has a child.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from pretraining.cli.program import run_program
from pretraining.system.launchers import num_processes, process_rank
from pretraining.system.restarts import supervise, this_restart


def main(argv: list[str]) -> None:
    supervise(int(argv[0]))
    restart = this_restart()
    attempt = 0 if restart is None else restart.number
    name = f"{attempt}-{process_rank()}"
    folder = Path(argv[1])

    def end(number: int, frame: object) -> None:
        with (folder / f"{name}.signals").open("a") as file:
            file.write(signal.Signals(number).name)
        time.sleep(0.3)  # in which the same signal may come again
        os._exit(plan.get("asked", 75))

    plan = json.loads(os.environ["DOES"])
    does = plan.get(name)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, end if does is None else signal.SIG_DFL)
    child = subprocess.Popen(["sleep", "300"])
    report = {"pid": os.getpid(), "child": child.pid, "supervisor": os.getppid(), **os.environ}
    partial = folder / f"{name}.partial"
    partial.write_text(json.dumps(report))
    partial.replace(folder / f"{name}.json")
    while len(list(folder.glob(f"{attempt}-*.json"))) < num_processes():
        time.sleep(0.02)
    if isinstance(does, int):
        os._exit(does)
    if does is not None:
        os.kill(os.getpid(), signal.Signals[does])
    time.sleep(300)


if __name__ == "__main__":
    run_program(main)
