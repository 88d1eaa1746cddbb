"""A rank that does nothing but hold on to the lifeline: python waiting_ranks.py FOLDER

Writes who it is into FOLDER/RANK.json, waits, and leaves when it is asked to stop. Takes a second to start, since it
needs no torch. With NEIGHBOURS it watches the other ranks.
"""

import json
import os
import sys
import time
from pathlib import Path

PROJECT_DIR = Path(__file__).parents[3]
sys.path.insert(0, str(PROJECT_DIR))

from pretraining.errors import STOPPED_EXIT_CODE  # noqa: E402 - after the path
from pretraining.system.launchers import launcher_identity, process_rank  # noqa: E402
from pretraining.system.processes import ProcessHandle, stat_words  # noqa: E402
from pretraining.training.stopping.orphan_guard import OrphanGuard  # noqa: E402
from pretraining.training.stopping.request import StopRequest  # noqa: E402


def main() -> None:
    request = StopRequest()
    lifeline = OrphanGuard(request)
    lifeline.start()
    request.begin_training()
    launcher = int(launcher_identity().split("-")[0])
    who = {"pid": os.getpid(), "parent": os.getppid(), "launcher": launcher, "runner": int(stat_words(launcher)[1])}
    folder = Path(sys.argv[-1])
    (folder / "partial").mkdir(exist_ok=True)
    partial = folder / f"partial/{process_rank()}"
    partial.write_text(json.dumps(who))
    partial.replace(folder / f"{process_rank()}.json")
    if "NEIGHBOURS" in os.environ:
        while len(found := list(folder.glob("*.json"))) < 2:
            time.sleep(0.05)
        pids = {int(path.stem): json.loads(path.read_text())["pid"] for path in found}
        lifeline.watch({rank: ProcessHandle.of(pid) for rank, pid in pids.items() if pid != os.getpid()})
    while not (request.reason and "NEIGHBOURS" not in os.environ):
        time.sleep(0.05)
    time.sleep(1.5)  # the save
    (folder / f"asked-{process_rank()}").write_text(request.reason)
    os._exit(STOPPED_EXIT_CODE)


if __name__ == "__main__":
    main()
