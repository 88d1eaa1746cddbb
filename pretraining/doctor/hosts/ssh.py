"""Programs on other hosts, started by ssh as pdsh starts those of a run: same folder, same interpreter, no password."""

import asyncio
import contextlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining import PROJECT_DIR
from pretraining.doctor.finding import Finding, failure
from pretraining.doctor.hosts.hostfile import Host
from pretraining.system.formatting import shorten

CONNECT_SECONDS = 10
# Everything else is of the user's own configuration of ssh.
SSH = ("ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "--")
SSH_FAILED, NO_FOLDER, NO_INTERPRETER, NO_PROJECT = 255, 81, 82, 83
MARK = "doctor:"  # before each line of JSON; a shell of the user may print others
MAX_CHARACTERS = 160
# Words of OpenSSH's message: the name of the finding, what is wrong, the remedy.
SSH_PROBLEMS = {
    "resolve hostname": (
        "name resolution",
        "the name is not known here",
        "getent hosts {0}; grep -n {0} ~/.ssh/config",
    ),
    "Permission denied": ("ssh", "asks for a password, which a launcher cannot type", "ssh-copy-id {0}"),
    "verification failed": ("ssh", "its key is not known or has changed", "ssh {0} true  # compare its key first"),
    "Connection refused": ("ssh", "no ssh server answers", "ssh -v {0} true  # another port? set it in ~/.ssh/config"),
}


@dataclass(frozen=True)
class HostError(Exception):
    """Why a host did not answer."""

    finding: Finding


def command_of(module: str, *words: str, variables: dict[str, str] | None = None) -> str:
    """The shell command that starts a module of this project as pdsh starts a run: after `cd`, by the same path."""
    python, folder, project = (shlex.quote(str(path)) for path in (sys.executable, Path.cwd(), PROJECT_DIR))
    found = {"PYTHONPATH": str(PROJECT_DIR), **(variables or {})}
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in found.items())
    module_file = f"{project}/{module.replace('.', '/')}.py"
    script = (
        f"cd {folder} || exit {NO_FOLDER}; test -x {python} || exit {NO_INTERPRETER}; "
        f"test -f {module_file} || exit {NO_PROJECT}; exec env {exports} {shlex.join(words)} {python} -m {module}"
    )
    return f"sh -c {shlex.quote(script)}"


class Session:
    """A program on a host with which this one exchanges lines of JSON."""

    def __init__(self, host: Host, command: str) -> None:
        self.host = host
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, question: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        """What the program answers to one line; it is started by the first.

        Raises:
            HostError: when none comes.
        """
        try:
            return await asyncio.wait_for(self._ask(question), seconds)
        except TimeoutError:
            fix = f"ssh {self.host.name} true; ssh {self.host.name} 'df; uptime'  # a dead network disk?"
            figure = f"{self.host.name}: no answer within {seconds:.0f} s"
            raise HostError(failure("ssh", figure, fix, host=self.host.name)) from None

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            words = (*SSH, self.host.name, self._command)
            self._process = await asyncio.create_subprocess_exec(
                *words, stdin=pipe, stdout=pipe, stderr=pipe, limit=2**24
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):  # ssh has ended; why, is in its exit code
            process.stdin.write(json.dumps(question).encode() + b"\n")
            await process.stdin.drain()
        while line := await process.stdout.readline():
            if line.startswith(MARK.encode()):
                return json.loads(line[len(MARK) :])
        assert process.stderr is not None
        errors = (await process.stderr.read()).decode(errors="replace")
        raise HostError(assess_end(self.host.name, await process.wait(), errors))

    async def close(self) -> None:
        """End the program: it does so when its input ends, and its connection is cut if it does not."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError, ProcessLookupError):
            await asyncio.wait_for(self._process.wait(), 1.0)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def assess_end(host: str, code: int, errors: str) -> Finding:
    """Why a program ended without an answer."""
    lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {code}"]
    message = shorten(lines[-1].strip(), MAX_CHARACTERS)
    if code == SSH_FAILED:
        for words, (name, figure, fix) in SSH_PROBLEMS.items():
            if words in errors:
                return failure(name, f"{host}: {figure} ({message})", fix.format(host), host=host)
        return failure("ssh", f"{host}: cannot be reached ({message})", f"ssh -v {host} true", host=host)
    folder, python, project = (shlex.quote(str(path)) for path in (Path.cwd(), sys.executable, PROJECT_DIR))
    name, figure, fix = {
        NO_FOLDER: (
            "folder",
            f"{Path.cwd()} is missing, to which the launcher changes",
            f"ssh {host} ls -ld {folder}  # mount it, or: rsync -a --mkpath --exclude runs {folder}/ {host}:{folder}/",
        ),
        NO_INTERPRETER: (
            "interpreter",
            f"{sys.executable} is missing, which the launcher starts",
            f"ssh {host} ls -l {python}  # create the same environment at the same path",
        ),
        NO_PROJECT: (
            "project",
            f"another version of this project, or none, is in {PROJECT_DIR}",
            f"rsync -a --mkpath --exclude .venv --exclude runs {project}/ {host}:{project}/",
        ),
    }.get(code, ("interpreter", message, f"ssh {host} {python} -V"))
    return failure(name, f"{host}: {figure}", fix, host=host)
