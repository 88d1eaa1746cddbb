"""The machines of a run: their processes meet first, with the same code, packages, blocks and flags on each."""

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pretraining.cli.logs import counted
from pretraining.cli.program import importing_libraries
from pretraining.runs.run_record import differences
from pretraining.system.files import code_hash
from pretraining.system.formatting import format_bytes
from pretraining.system.host import machine_inventory
from pretraining.system.launchers import spans_machines
from pretraining.system.machines.meeting import MEETING_SECONDS, gather, leave, open_meeting
from pretraining.system.machines.software import commit, versions_to_compare

CODE = "this project"
SHOWN_DIGITS = 12  # of hashes

logger = logging.getLogger(__name__)

_machines: list[dict[str, Any]] = []


def meet_machines() -> None:
    """Meet the processes of all machines before anything else, and compare what each machine has.

    From here on a mistake that one process finds ends all of them. On one machine there is nothing to do.

    Raises:
        UserError: when not all processes come, or a machine has other code or versions than that of rank 0.
    """
    if not spans_machines():
        return
    with importing_libraries():  # torch, for the store
        open_meeting()
    own = {"host": socket.gethostname(), **machine_inventory(), "commit": commit(), "software": software()}
    found = gather("machine", own, seconds=MEETING_SECONDS)
    if problems := list(dict.fromkeys(other_software(found))):
        leave(problems)
    _machines[:] = distinct(found)
    for warning in other_gpus(_machines):
        logger.warning(warning)


def machines() -> list[dict[str, Any]]:
    """The machines of a run on several, as run.json has them; none on one machine."""
    return [{name: value for name, value in machine.items() if name != "software"} for machine in _machines]


def software() -> dict[str, str]:
    """What must be the same on every machine, by name."""
    return {CODE: code_hash()[:SHOWN_DIGITS], **versions_to_compare()}


def other_software(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Describe where a machine has another version than the first one."""
    first = found[0]
    for machine in found:
        for name in first["software"]:
            if machine["software"][name] != first["software"][name]:
                yield (
                    f"{machine['host']}: has another version of {name} ({_version(machine, name)}; {first['host']} has "
                    f"{_version(first, name)}); use the same checkout and environment on all machines"
                )


def _version(machine: Mapping[str, Any], name: str) -> str:
    version, of_code = machine["software"][name], machine["commit"] or "unknown"
    return f"files {version} of commit {of_code[:SHOWN_DIGITS]}" if name == CODE else version


def other_gpus(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Describe where a machine has GPUs of another kind, or another driver, than the first one."""
    first = found[0]
    for machine in found[1:]:
        if gpu_names(machine) != gpu_names(first):
            yield (
                f"{machine['host']}: has other GPUs ({', '.join(gpu_names(machine)) or 'none'}) than {first['host']} "
                f"({', '.join(gpu_names(first)) or 'none'}); each step takes as long as on the slowest"
            )
        elif machine["driver"] != first["driver"]:
            yield f"{machine['host']}: has driver {machine['driver']}, {first['host']} has {first['driver']}"


def gpu_names(machine: Mapping[str, Any]) -> list[str]:
    """The kinds of GPUs of a machine."""
    return sorted({gpu["name"] for gpu in machine["gpus"]})


def distinct(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The machines of processes in the order of their ranks, each with its number of processes."""
    machines: dict[str, dict[str, Any]] = {}
    for machine in found:
        machines.setdefault(machine["host"], {**machine, "num_processes": 0})["num_processes"] += 1
    return list(machines.values())


def describe_machine(machine: Mapping[str, Any]) -> str:
    """A machine of a run in the log.

    >>> describe_machine({"host": "a", "num_processes": 1, "gpus": [], "num_cpu_cores": 2, "memory_bytes": 8e9})
    'a (1 process, 2 cores, 8.0 GB)'
    """
    number = machine["num_processes"]
    gpus = [f"{len(machine['gpus'])} x {', '.join(gpu_names(machine))}"] if machine["gpus"] else []
    size = [counted(machine["num_cpu_cores"], "core"), format_bytes(machine["memory_bytes"])]
    return f"{machine['host']} ({', '.join([f'{number} process' + 'es' * (number != 1), *gpus, *size])})"


def agree_on_run(
    names: Sequence[str], manifests: Sequence[str], settings: Mapping[str, Mapping[str, Any]], *, seconds: float
) -> None:
    """Compare the data sets of all machines and the `settings` of all processes, once each has checked its own.

    Names may differ, as where a machine has its own copy of the blocks.

    Raises:
        UserError: when a process has found a problem, or has other blocks, flags or settings than rank 0.
    """
    own = {"host": socket.gethostname(), "names": list(names), "manifests": list(manifests), **settings}
    found = gather("run", own, seconds=seconds)
    if problems := list(dict.fromkeys(problem for each in found for problem in other_run(each, found[0]))):
        leave(problems)


def other_run(machine: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """Describe what a process would train otherwise than the first one; not what only follows from something else."""
    flags = _other_settings(machine, first, "flags", "type the same flags on all machines")
    return [*_other_blocks(machine, first), *flags] or _other_settings(
        machine, first, "resolved", "use the same flags, recipe and config files on all machines"
    )


def _other_blocks(machine: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    if len(machine["names"]) != len(first["names"]):
        return [
            f"{machine['host']}: --dataset: is {' '.join(machine['names'])}; {first['host']} has "
            f"{' '.join(first['names'])}; name the same data sets on all machines"
        ]
    return [
        f"{machine['host']}: --dataset {name}: has other blocks (SHA-256 of manifest.json {own[:SHOWN_DIGITS]}; "
        f"{first['host']} has {wanted[:SHOWN_DIGITS]}); copy the folder again, or use one that all machines share"
        for name, own, wanted in zip(machine["names"], machine["manifests"], first["manifests"], strict=True)
        if own != wanted
    ]


def _other_settings(machine: Mapping[str, Any], first: Mapping[str, Any], kind: str, remedy: str) -> list[str]:
    return [
        f"{machine['host']}: {name}: is {own}; {first['host']} has {wanted}; {remedy}"
        for name, wanted, own in differences(first[kind], machine[kind])
        if not name.endswith("nvme_path")  # of a machine's own disk
    ]
