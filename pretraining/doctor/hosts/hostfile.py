"""The hostfile of `deepspeed --hostfile`: one line `NAME slots=N` per host."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.errors import UserError

# As DeepSpeed reads it (launcher/runner.py of 0.19.8), which ignores what follows the number.
ENTRY = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\d+)(?P<rest>.*)")
# A name that begins with a hyphen would be a flag of ssh.
NAME = re.compile(r"\w[\w.:@-]*")


@dataclass(frozen=True)
class Host:
    """A host by the name that ssh is given, and the processes that a launcher starts there."""

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[list[Host], list[Finding]]:
    """The hosts of a file in its order, and what is wrong with its lines; the other lines are used.

    Raises:
        UserError: when the file cannot be read or names no host.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"--hostfile {path}: cannot be read ({error.strerror}); pass another file") from None
    hosts: dict[str, Host] = {}
    findings = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            findings += _read_line(hosts, line, f"{path}:{number}", f"{number}", shlex.quote(str(path)))
    if not hosts and not findings:
        raise UserError(f"--hostfile {path}: names no host; write one line `NAME slots=GPUS` for each")
    if not findings:
        num_slots = sum(host.slots for host in hosts.values())
        findings = [
            ok(
                "hostfile",
                f"{path}: {len(hosts)} host{'s' * (len(hosts) != 1)}, {num_slots} processes",
                hosts=list(hosts),
            )
        ]
    return list(hosts.values()), findings


def _read_line(hosts: dict[str, Host], line: str, place: str, number: str, file: str) -> list[Finding]:
    """Add the host of a line to `hosts`, and return what is wrong with the line."""
    found = ENTRY.fullmatch(line)
    if found is None:
        word, fix = line.split()[0], f"sed -i {shlex.quote(f'{number}s/.*/NAME slots=GPUS/')} {file}"
        return [failure("hostfile", f"{place}: {line[:60]!r} is not `NAME slots=GPUS`", fix, host=word)]
    name, slots, rest = found["name"], int(found["slots"]), found["rest"].strip()
    if not NAME.fullmatch(name):
        return [failure("hostfile", f"{place}: {name[:60]!r} is not the name of a host", f"sed -i {number}d {file}")]
    if name in hosts:
        figure = f"{place}: {name} is in the file twice, which DeepSpeed rejects"
        return [failure("hostfile", figure, f"sed -i {number}d {file}", host=name)]
    if slots == 0:
        fix = f"sed -i {shlex.quote(f'{number}s/slots=0*/slots=GPUS/')} {file}"
        return [failure("hostfile", f"{place}: {name} has 0 slots", fix, host=name)]
    hosts[name] = Host(name, slots)
    if rest and not rest.startswith("#"):
        fix = f"sed -i {shlex.quote(f'{number}s/.*/{name} slots={slots}/')} {file}"
        return [warning("hostfile", f"{place}: {name}: DeepSpeed ignores {rest[:60]!r}", fix, host=name)]
    return []
