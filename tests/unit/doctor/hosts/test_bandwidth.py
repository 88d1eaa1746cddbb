"""What a measured rate between hosts means; tests/multinode/test_doctor.py measures one."""

import asyncio

import pytest

from pretraining.doctor.finding import Finding
from pretraining.doctor.hosts.bandwidth import assess, measure_between
from pretraining.doctor.hosts.hostfile import Host

MEASURED = {"backend": "nccl", "size": 16, "num_bytes": 2**28, "bytes_per_second": 1e9, "bus_bytes_per_second": 2e9}


@pytest.mark.parametrize(
    ("rate", "on_gpus", "status", "seconds"),
    [(2e9, True, "ok", "19.0 s"), (1e9, True, "warning", "37.9 s"), (1e9, False, "ok", "37.9 s")],
)
def test_the_rate_is_given_in_seconds_of_a_known_model(rate: float, on_gpus: bool, status: str, seconds: str) -> None:
    """6 bytes for each of 6.74e9 parameters, of which each of 16 processes has a 16th already: 37.9 GB."""
    found = assess({**MEASURED, "bus_bytes_per_second": rate}, num_hosts=2, on_gpus=on_gpus)
    assert found.status == status
    assert found.figure.startswith(
        f"nccl, 16 processes on 2 hosts, 268 MB: {rate / 1e9:.2f} GB/s enter each host (bus)"
    )
    assert f"would wait for {seconds} per micro step" in found.figure


BROKEN = "breaks: ImportError: libnccl.so.2"
SILENT = "hangs: no answer to the others within 2 s"


@pytest.mark.parametrize(
    "figures",
    [
        {("hangs", "breaks"): BROKEN, ("breaks", "hangs"): BROKEN, ("hangs", "hangs-too"): SILENT},
        {("notices", "breaks"): BROKEN},
    ],
)
def test_the_rank_that_fails_first_is_named_and_not_those_that_it_takes_along(
    ssh: None, figures: dict[tuple[str, str], str]
) -> None:
    """Pairs of hosts at once, as each pair with one that hangs takes all of its time."""

    async def measure_all() -> list[Finding]:
        pairs = [[Host(name, 1) for name in names] for names in figures]
        address = ("127.0.0.1", 1)
        return await asyncio.gather(*(measure_between(hosts, address, on_gpus=False, seconds=2.0) for hosts in pairs))

    for found, figure in zip(asyncio.run(measure_all()), figures.values(), strict=True):
        assert (found.status, found.figure) == ("failure", figure)
        assert found.figures["host"] == figure.split(":")[0]
