"""A rank under tools.supervise that imports no torch and so starts at once: supervised.py FOLDER

DOES={"0-1": ...} says what rank 1 does in attempt 0: end with a number, or kill itself by a signal's name. Others wait
until a signal comes and then stop, after half a second in which they would save; they leave its name in FOLDER.
"""

import json
import os
import signal
import time
from pathlib import Path

from pretraining.cli.program import exit_process, run_program
from pretraining.system.launchers import num_processes, process_rank
from pretraining.system.processes import STOP_SIGNALS
from pretraining.system.supervision import this_restart


def main(argv: list[str]) -> None:
    restart = this_restart()
    attempt = 0 if restart is None else restart.number
    name, folder, received = f"{attempt}-{process_rank()}", Path(argv[-1]), []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: received.append(signal.Signals(number).name))
    (folder / f"{name}.json").touch()
    while len(list(folder.glob(f"{attempt}-*.json"))) < num_processes():
        time.sleep(0.02)
    does = json.loads(os.environ["DOES"]).get(name)
    if isinstance(does, int):
        exit_process(does)
    if does is not None:
        os.kill(os.getpid(), signal.Signals[does])
    while not received:
        time.sleep(0.02)
    time.sleep(0.5)
    (folder / f"{name}.signals").write_text(" ".join(received))
    exit_process(75)


if __name__ == "__main__":
    run_program(main)
