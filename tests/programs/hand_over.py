"""Has a preloaded process run a program with this environment and these files: python hand_over.py PROGRAM --flags

PYTHON_LISTENING is the folder with the socket of that process, which begins as the name of this host does. Passes on
signals and ends as the program does, by a signal too. For launchers and supervisors, which start new processes.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def main(words: list[str]) -> None:
    program = next(word for word in words if not word.startswith("-"))  # deepspeed puts a flag before it
    words.remove(program)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(f"{os.environ['PYTHON_LISTENING']}/{os.uname().nodename[:8]}")
        job = {"argv": [program, *words], "env": dict(os.environ), "cwd": str(Path.cwd())}
        socket.send_fds(connection, [json.dumps(job).encode()], [0, 1, 2])
        pid = int(connection.recv(32))
        for number in SIGNALS:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(connection.recv(32))
    if code < 0:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
