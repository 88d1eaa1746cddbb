"""What one host reports of itself: runs there, reads questions from its input, and answers each with a line of JSON.

It ends when its input does, and after LIMIT_SECONDS at the latest. Standard library only, but for the names of GPUs.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pretraining.doctor.disk import existing
from pretraining.doctor.hosts.ssh import MARK
from pretraining.system.files import code_hash
from pretraining.system.host import machine_inventory
from pretraining.system.machines.network import listen
from pretraining.system.machines.software import commit, versions_to_compare

LIMIT_SECONDS = 60
# A network disk may show a new file late: an NFS client looks again for a name after 3 s, its default (acregmin).
TOKEN_SECONDS = 4.0
CONNECT_SECONDS = 3.0
NAME_SECONDS = 3.0


def main() -> None:
    """Answer the first question with what this host is, and the second with what it sees of the others."""
    signal.alarm(LIMIT_SECONDS)
    question = json.loads(sys.stdin.readline())
    with token_file(Path(question["run_folder"]), question["token"]) as folder, listener(question["token"]) as port:
        answer({**facts(question["datasets"]), "run_folder": folder, "port": port, "time": time.time()})
        others = sys.stdin.readline()
        if others:
            question = json.loads(others)
            reached = addresses_reached(question["addresses"], question["port"], question["token"])
            answer({"seen": tokens_seen(question["tokens"]), "reached": reached})
        sys.stdin.read()  # the token has to stay until all have looked for it


def answer(found: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(f"{MARK}{json.dumps(found)}\n")
    sys.stdout.flush()


def facts(datasets: Sequence[str]) -> dict[str, Any]:
    """Software, hardware, names and addresses, and the block stores of `datasets`."""
    return {
        "versions": versions_to_compare(),
        "commit": commit(),
        "code": code_hash(),
        **machine_inventory(),
        "datasets": {name: describe_store(Path(name)) for name in datasets},
        "addresses": addresses(),
        "variables": sorted(os.environ),
    }


def describe_store(store: Path) -> dict[str, Any]:
    """The hash of a block store's manifest, and the shards that are not there in the size that it has."""
    try:
        content = (store / "manifest.json").read_bytes()
        manifest = json.loads(content)
        groups = [manifest["documents"], *(split["shards"] for split in manifest["splits"].values())]
        shards = {str(shard["path"]): shard["num_bytes"] for group in groups for shard in group}
    except OSError as error:
        return {"problem": f"manifest.json is missing ({error.strerror})"}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {"problem": "manifest.json is damaged"}
    wrong = [name for name, num_bytes in shards.items() if _size(store / name) != num_bytes]
    found = {"sha256": hashlib.sha256(content).hexdigest(), "num_files": len(shards)}
    if wrong:
        found["problem"] = f"{len(wrong)} of {len(shards)} files are missing or have another size, e.g. {wrong[0]}"
    return found


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None


def addresses() -> list[str]:
    """As `hostname -I` prints them, whose first word DeepSpeed takes for the address of the first host."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=NAME_SECONDS, check=True)
        return done.stdout.split()
    return []


@contextmanager
def token_file(run_folder: Path, token: str) -> Iterator[dict[str, str]]:
    """A file that other hosts should see, in the run folder or in the nearest folder above it that exists."""
    folder = existing(run_folder)
    path, problem = folder / f".doctor-{token}", ""
    try:
        path.write_text(token, encoding="ascii")
    except OSError as error:
        problem = str(error.strerror)
    try:
        yield {"folder": str(folder), "problem": problem}
    finally:
        with suppress(OSError):
            path.unlink()


def tokens_seen(paths: Sequence[str]) -> list[str]:
    """Those files that are here, or appear within TOKEN_SECONDS."""
    deadline = time.monotonic() + TOKEN_SECONDS
    while not all(Path(path).exists() for path in paths) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [path for path in paths if Path(path).exists()]


@contextmanager
def listener(token: str) -> Iterator[int]:
    """A port at which this host answers with its token, so that nobody takes another machine for it."""
    server = listen()

    def serve() -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.sendall(token.encode("ascii"))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)  # wakes the thread, whose wait would keep the port open
        server.close()


def addresses_reached(addresses: Sequence[str], port: int, token: str) -> list[str]:
    """Those at which the host with this token answers; all are tried at once, since each may take CONNECT_SECONDS."""

    def reaches(address: str) -> bool:
        with suppress(OSError), socket.create_connection((address, port), CONNECT_SECONDS) as connection:
            return connection.makefile("rb").read(len(token)) == token.encode("ascii")
        return False

    with ThreadPoolExecutor(max(1, len(addresses))) as pool:
        return [address for address, found in zip(addresses, pool.map(reaches, addresses), strict=True) if found]


if __name__ == "__main__":
    main()
