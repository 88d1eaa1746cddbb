"""Starts pretrain.py and keeps in LISTENING, by rank, the addresses at which a process accepts connections in a step.

A warning quotes SECRET_TEXT in the first step, as one of a library or a server could. Takes pretrain.py's flags and
launchers.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank
from pretraining.training.trainer.trainer import PretrainingTrainer

LISTENS = "0A"  # the state of a socket in /proc/net/tcp


def listening() -> Iterator[str]:
    """Addresses, as hexadecimal digits in the order of the machine's words."""
    links = (str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    ours = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and words[9] in ours:
                yield words[1].partition(":")[0]


def main(argv: Sequence[str]) -> None:
    micro_step = PretrainingTrainer.training_step

    def watched(trainer: PretrainingTrainer, *args: Any, **options: Any) -> Any:
        path = Path(os.environ["LISTENING"], f"{process_rank()}.json")
        if not path.exists():
            path.write_text(json.dumps(list(listening())))
            logging.getLogger("pretraining.test").warning("cannot reach %s", os.environ.get("SECRET_TEXT"))
        return micro_step(trainer, *args, **options)

    PretrainingTrainer.training_step = watched
    pretrain.main(argv)


if __name__ == "__main__":
    run_program(main)
