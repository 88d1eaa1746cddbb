"""What the answers of all hosts mean together: the same software, hardware and blocks, one run folder, one time."""

import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretraining import PROJECT_DIR
from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.doctor.hosts.hostfile import Host
from pretraining.doctor.software import INSTALL
from pretraining.system.formatting import format_bytes
from pretraining.system.launchers import MAX_PROCESSES_PER_CORE
from pretraining.system.machines.software import NONE

Facts = Mapping[str, dict[str, Any]]  # by host, in the order of the hostfile
MAX_CLOCK_SECONDS = 5.0  # an answer that took this long to arrive is measured as a difference of the clocks, too
MIN_MEMORY_SHARE = 0.9
NUM_SHOWN = 4


def assess_software(facts: Facts) -> Iterator[Finding]:
    """Versions and code of each host against those of the first."""
    first, expected = next(iter(facts.items()))
    folder, python = shlex.quote(str(PROJECT_DIR)), shlex.quote(sys.executable)
    install = INSTALL.replace("python3", python, 1)
    findings = []
    for host, found in facts.items():
        pairs = {name: (found["versions"].get(name, NONE), theirs) for name, theirs in expected["versions"].items()}
        other = {name: (own, theirs) for name, (own, theirs) in pairs.items() if own != theirs}
        if other:
            shown = ", ".join(f"{name} {own} ({first}: {theirs})" for name, (own, theirs) in other.items())
            fix = f"ssh {host} {shlex.quote(f'cd {folder} && {install}')}"
            findings.append(failure("versions", f"{host}: {shown}", fix, host=host, other=other))
        if found["code"] != expected["code"]:
            shown = f"{_describe_code(found)} ({first}: {_describe_code(expected)})"
            fix = f"rsync -a --exclude .venv --exclude runs {folder}/ {host}:{folder}/"
            findings.append(failure("project", f"{host}: other code, {shown}", fix, host=host))
    shown = ", ".join(f"{name} {expected['versions'][name]}" for name in ("Python", "torch", "deepspeed"))
    yield from findings or [ok("versions", f"{shown}, {_describe_code(expected)} on {_count(facts)}")]


def _describe_code(found: dict[str, Any]) -> str:
    return f"commit {(found['commit'] or 'unknown')[:12]}, files {found['code'][:12]}"


def _count(facts: Facts) -> str:
    return f"{len(facts)} host{'s' * (len(facts) != 1)}"


def assess_hardware(hosts: Sequence[Host], facts: Facts) -> Iterator[Finding]:
    """GPUs against slots and against those of the first host; cores where there are no GPUs; memory."""
    first, expected = next(iter(facts.items()))
    findings = [found for host in hosts if host.name in facts for found in _slots(host, facts[host.name])]
    for host, found in facts.items():
        if describe_gpus(found) != describe_gpus(expected):
            figure = f"{host}: {describe_gpus(found)} ({first}: {describe_gpus(expected)})"
            findings.append(warning("GPUs", f"{figure}; every step waits for the slowest", f"ssh {host} nvidia-smi"))
    yield from findings or [ok("GPUs", f"{describe_gpus(expected)} on {_count(facts)}")]
    memory = {host: found["memory_bytes"] for host, found in facts.items()}
    smallest = min(memory, key=lambda host: memory[host])
    shown = f"{format_bytes(memory[smallest])} on {smallest}, which a plan has to count"
    if memory[smallest] < MIN_MEMORY_SHARE * max(memory.values()):
        figure = f"{shown}; another host has {format_bytes(max(memory.values()))}"
        yield warning("memory", figure, f"ssh {smallest} free -g", host=smallest, **memory)
    else:
        yield ok("memory", shown, **memory)


def _slots(host: Host, found: dict[str, Any]) -> Iterator[Finding]:
    """Whether a host has the GPUs, or the cores, for its processes."""
    num_gpus, most = len(found["gpus"]), found["num_cpu_cores"] * MAX_PROCESSES_PER_CORE
    if num_gpus and host.slots > num_gpus:
        figure = f"{host.name}: {host.slots} slots, but it has {num_gpus} GPUs"
        yield failure("slots", figure, f"ssh {host.name} nvidia-smi -L  # write slots={num_gpus}", host=host.name)
    elif not num_gpus and host.slots > most:
        figure = f"{host.name}: {host.slots} slots, but it has no GPU and {found['num_cpu_cores']} cores"
        yield failure("slots", figure, f"ssh {host.name} nproc  # write slots={most} or less", host=host.name)


def describe_gpus(found: dict[str, Any]) -> str:
    """Number, kind and driver of a host's GPUs."""
    names = [gpu["name"] for gpu in found["gpus"]]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    return f"{kinds}, driver {found['driver']}" if names else "no GPU"


def assess_run_folder(run_folder: Path, facts: Facts, seen: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Whether the files that each host wrote into the run folder were seen by the others.

    `seen` has by host the hosts whose file it sees.
    """
    first, expected = next(iter(facts.items()))
    findings = []
    for host, found in facts.items():
        own = found["run_folder"]
        remedy = (
            f"ssh {host} df {shlex.quote(own['folder'])}  # mount the disk of {first} there, or another --output_dir"
        )
        if own["problem"]:
            figure = f"{host}: {own['folder']} cannot be written ({own['problem']})"
            findings.append(failure("run folder", figure, f"ssh {host} ls -ld {shlex.quote(own['folder'])}", host=host))
        elif not _is_shared(host, first, seen) and not expected["run_folder"]["problem"]:
            figure = f"{host}: {own['folder']} is not the folder of {first}; checkpoints need one that all hosts share"
            findings.append(failure("run folder", figure, remedy, host=host))
        elif own["folder"] != expected["run_folder"]["folder"]:
            figure = f"{host}: {run_folder} would be created in {own['folder']}, on {first} in "
            findings.append(failure("run folder", figure + expected["run_folder"]["folder"], remedy, host=host))
    shown = expected["run_folder"]["folder"]
    yield from findings or [ok("run folder", f"{run_folder}: one folder on {_count(facts)} ({shown})")]


def _is_shared(host: str, first: str, seen: Mapping[str, Sequence[str]]) -> bool:
    """Whether both hosts see both files; what a host that no longer answered would have seen is not known."""
    return host not in seen or first not in seen or (first in seen[host] and host in seen[first])


def assess_blocks(facts: Facts) -> Iterator[Finding]:
    """Whether every host has every block store, complete and the same."""
    for name in next(iter(facts.values()))["datasets"]:
        stores = {host: found["datasets"][name] for host, found in facts.items()}
        whole = [host for host, store in stores.items() if "problem" not in store]
        source = whole[0] if whole else ""
        expected: dict[str, Any] = stores[source] if whole else {}
        findings = []
        for host, store in stores.items():
            path = shlex.quote(str(Path(name).absolute()))
            copy = shlex.quote(f"rsync -a {path}/ {host}:{path}/")
            fix = f"ssh {source} {copy}" if source else f"ssh {host} ls -l {path}"
            if "problem" in store:
                findings.append(failure("blocks", f"{host}: {name}: {store['problem']}", fix, host=host))
            elif store["sha256"] != expected["sha256"]:
                figure = f"{host}: {name}: its manifest has the hash {store['sha256'][:8]}, "
                figure += f"that of {source} {expected['sha256'][:8]}"
                findings.append(failure("blocks", figure, fix, host=host))
        shown = f"{name}: {expected.get('num_files')} files on {_count(facts)}"
        yield from findings or [ok("blocks", shown, sha256=expected["sha256"])]


def assess_clocks(skews: Mapping[str, float]) -> Finding:
    """The clocks of all hosts, in seconds before or after that of this machine."""
    spread = max(skews.values()) - min(skews.values())
    if spread <= MAX_CLOCK_SECONDS:
        return ok("clocks", f"differ by {spread:.1f} s at most", **skews)
    middle = (statistics.median_low(skews.values()), statistics.median_high(skews.values()))
    median = min(middle, key=abs)  # of two hosts that with the time of this machine
    worst = max(skews, key=lambda host: abs(skews[host] - median))
    ahead = skews[worst] - median
    figure = f"{worst}: {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the others"
    fix = f"ssh {worst} sudo timedatectl set-ntp true"
    return warning("clocks", f"{figure}: times in logs do not compare", fix, host=worst, **skews)


def assess_address(facts: Facts, reached: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Whether the others reach the address of the first host that DeepSpeed takes, the first of `hostname -I`.

    `reached` has by other host the addresses at which it reached the first.
    """
    host, found = next(iter(facts.items()))
    address = (found["addresses"] or ["none"])[0]
    common = address_for_all(facts, reached)
    missing = [other for other, others in reached.items() if address not in others]
    if missing and common is not None:
        figure = f"{host}: `hostname -I` begins with {address}, which {', '.join(missing[:NUM_SHOWN])} cannot reach"
        yield failure("address", figure, f"deepspeed --master_addr={common} ...  # which all reach", host=host)
    elif missing:
        figure = (
            f"{', '.join(missing[:NUM_SHOWN])}: cannot reach {host} at {' '.join(found['addresses']) or 'any address'}"
        )
        yield failure("address", figure, f"ssh {missing[0]} ping -c 3 {address}  # a firewall between them?", host=host)
    else:
        yield ok("address", f"{host} is reached at {address}", host=host, address=address)


def address_for_all(facts: Facts, reached: Mapping[str, Sequence[str]]) -> str | None:
    """The first address of the first host that all others reach."""
    _, found = next(iter(facts.items()))
    return next((one for one in found["addresses"] if all(one in others for others in reached.values())), None)
