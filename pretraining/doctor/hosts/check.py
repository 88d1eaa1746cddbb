"""Check all hosts of a hostfile at once, within a minute; one that does not answer takes none of the others' time."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretraining.doctor.finding import Check, Finding, ok, warning
from pretraining.doctor.hosts import assessment, bandwidth, launch
from pretraining.doctor.hosts.hostfile import Host, read_hostfile
from pretraining.doctor.hosts.ssh import HostError, Session, command_of

INSPECTION = "pretraining.doctor.hosts.inspection"
# In all less than what the doctor has: a connection may take 10 s, Python from a cold network disk as long again.
FACTS_SECONDS, VIEW_SECONDS, BANDWIDTH_SECONDS, TOTAL_SECONDS = 20.0, 12.0, 24.0, 57.0
SPARE_SECONDS = 1.0


@dataclass(frozen=True)
class HostsRequest:
    """What the hosts are asked about: those of a file, the run folder and the block stores of a run."""

    hostfile: Path
    run_folder: Path
    datasets: Sequence[str]


@dataclass(frozen=True)
class Answers:
    """What the hosts reported, by name in the order of the hostfile, and those that did not."""

    facts: dict[str, dict[str, Any]]
    skews: dict[str, float]
    seen: dict[str, list[str]]
    reached: dict[str, list[str]]
    problems: list[Finding]


def hosts_check(request: HostsRequest) -> Check:
    """The check of all hosts; it reads the hostfile at once.

    Raises:
        UserError: when the hostfile cannot be read or names no host.
    """
    hosts, findings = read_hostfile(request.hostfile)

    def run(_: Sequence[Path]) -> Iterator[Finding]:
        yield from findings
        yield from check_hosts(hosts, request)

    return Check("hosts", "hosts", run, TOTAL_SECONDS)


def check_hosts(hosts: Sequence[Host], request: HostsRequest) -> Iterator[Finding]:
    """Findings of all hosts, then the network between those that could train together."""
    deadline = time.monotonic() + TOTAL_SECONDS - SPARE_SECONDS
    answers = asyncio.run(ask_hosts(hosts, request))
    yield from answers.problems
    facts = answers.facts
    yield from launch.check_launch({host: found["variables"] for host, found in facts.items()})
    if not facts:
        return
    yield ok("ssh", f"{len(facts)} of {len(hosts)} hosts answered", hosts=list(facts))
    machines = [*assessment.assess_software(facts), *assessment.assess_hardware(hosts, facts)]
    yield from machines
    yield from assessment.assess_run_folder(request.run_folder, facts, answers.seen)
    yield from assessment.assess_blocks(facts)
    yield assessment.assess_clocks(answers.skews)
    yield from assessment.assess_address(facts, answers.reached)
    yield from _bandwidth([host for host in hosts if host.name in facts], answers, machines, deadline)


def _bandwidth(
    hosts: Sequence[Host], answers: Answers, machines: Sequence[Finding], deadline: float
) -> Iterator[Finding]:
    """The measured network; not measured where a process would crash, or wait for an address without an answer."""
    address = assessment.address_for_all(answers.facts, answers.reached)
    kinds = {bool(found["gpus"]) for found in answers.facts.values()}
    if len(hosts) < 2 or address is None or len(kinds) > 1 or any(found.status == "failure" for found in machines):
        reason = "it takes two hosts with the same software and enough GPUs or cores that reach each other"
        yield warning("bandwidth", f"not measured: {reason}", "python3 -m tools.doctor --hostfile FILE  # once more")
        return
    seconds = min(BANDWIDTH_SECONDS, deadline - time.monotonic())
    port = next(iter(answers.facts.values()))["port"]  # which was free a moment ago
    yield asyncio.run(bandwidth.measure_between(hosts, (address, port), on_gpus=kinds == {True}, seconds=seconds))


async def ask_hosts(hosts: Sequence[Host], request: HostsRequest) -> Answers:
    """Ask all hosts what they are, and then each what it sees of the others."""
    sessions = [Session(host, command_of(INSPECTION)) for host in hosts]
    answers = Answers({}, {}, {}, {}, [])
    tokens = {host.name: secrets.token_hex(16) for host in hosts}
    try:
        await asyncio.gather(*(_ask_facts(session, request, tokens, answers) for session in sessions))
        ordered = {host.name: answers.facts[host.name] for host in hosts if host.name in answers.facts}
        answers = replace(answers, facts=ordered)
        await asyncio.gather(*(_ask_view(one, tokens, answers) for one in sessions if one.host.name in ordered))
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    return answers


async def _ask_facts(session: Session, request: HostsRequest, tokens: dict[str, str], answers: Answers) -> None:
    name = session.host.name
    question = {"token": tokens[name], "run_folder": str(request.run_folder), "datasets": list(request.datasets)}
    try:
        answers.facts[name] = await session.ask(question, seconds=FACTS_SECONDS)
        answers.skews[name] = answers.facts[name]["time"] - time.time()
    except HostError as error:
        answers.problems.append(error.finding)


async def _ask_view(session: Session, tokens: dict[str, str], answers: Answers) -> None:
    """Which tokens a host sees, and at which addresses it reaches the first host."""
    name, (first, found) = session.host.name, next(iter(answers.facts.items()))
    paths = {
        host: str(Path(one["run_folder"]["folder"], f".doctor-{tokens[host]}")) for host, one in answers.facts.items()
    }
    question = {"tokens": list(paths.values()), "addresses": found["addresses"], "port": found["port"]}
    try:
        view = await session.ask({**question, "token": tokens[first]}, seconds=VIEW_SECONDS)
    except HostError as error:
        answers.problems.append(error.finding)
        return
    answers.seen[name] = [host for host, path in paths.items() if path in view["seen"]]
    if name != first:
        answers.reached[name] = view["reached"]
