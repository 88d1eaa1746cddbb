"""Measured all-reduce between hosts: NCCL with a process per slot, or gloo with one process per host on CPUs."""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

from pretraining.doctor.all_reduce import last_error
from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.doctor.hosts.hostfile import Host
from pretraining.doctor.hosts.ssh import SSH, command_of
from pretraining.system.formatting import format_bytes

MODULE = "pretraining.doctor.all_reduce"
# 10 Gbit/s Ethernet carries 1.25e9: there Llama-2-7B under ZeRO-3 waits for 30 s in each micro step of 16 GPUs.
MIN_BYTES_PER_SECOND = 1.3e9
NUM_PARAMETERS = 6_738_415_616  # of Llama-2-7B
BYTES_PER_PARAMETER = 6  # that ZeRO-3 sends per micro step in bf16: weights twice, gradients once
DEBUG = "NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME go into .deepspeed_env; ip -br addr"


async def measure_between(hosts: Sequence[Host], address: tuple[str, int], *, on_gpus: bool, seconds: float) -> Finding:
    """Start the ranks on all hosts and read what the first one measured; they meet at an address of the first host."""
    sizes = [host.slots if on_gpus else 1 for host in hosts]
    shared = {"WORLD_SIZE": str(sum(sizes)), "MASTER_ADDR": address[0], "MASTER_PORT": str(address[1])}
    ranks: list[asyncio.Task[str]] = []
    failed: list[tuple[str, str]] = []  # by host, in the order of their ends: the others fail or wait for the first one
    for host, size in zip(hosts, sizes, strict=True):
        for local_rank in range(size):
            variables = {**shared, "RANK": str(len(ranks)), "LOCAL_RANK": str(local_rank)}
            ranks.append(asyncio.create_task(_run_rank(host, variables, seconds, failed)))
    outputs = await asyncio.gather(*ranks)
    if failed:
        name, error = failed[0]
        return failure("bandwidth", f"{name}: {error}", f"env | grep -E 'NCCL|GLOO'  # {DEBUG}", host=name)
    return assess(json.loads(outputs[0]), num_hosts=len(hosts), on_gpus=on_gpus)


async def _run_rank(host: Host, variables: dict[str, str], seconds: float, failed: list[tuple[str, str]]) -> str:
    """The last line that a rank wrote; after an error none, and `failed` has the error."""
    # The rank itself ends when this process is killed: nothing would end it on the other side of ssh.
    command = command_of(MODULE, "timeout", str(math.ceil(seconds)), variables=variables)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *SSH, host.name, command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        failed.append((host.name, f"no answer to the others within {seconds:.0f} s"))
        process.kill()
        await process.wait()
        return ""
    if process.returncode:
        failed.append((host.name, last_error(errors.decode(errors="replace"), f"exit code {process.returncode}")))
        return ""
    return output.decode().splitlines()[-1]


def assess(measured: dict[str, Any], *, num_hosts: int, on_gpus: bool) -> Finding:
    """The measured rate, and what it means for the model that most people know.

    `bus` is what enters each process per second. The ring of all processes enters each host once, so it is also what
    enters a host.
    """
    rate, size = measured["bus_bytes_per_second"], measured["size"]
    seconds = BYTES_PER_PARAMETER * NUM_PARAMETERS * (size - 1) / size / rate
    figure = f"{measured['backend']}, {size} processes on {num_hosts} hosts, "
    figure += f"{format_bytes(measured['num_bytes'])}: {rate / 1e9:.2f} GB/s enter each host (bus); "
    figure += f"Llama-2-7B under ZeRO-3 would wait for {seconds:.1f} s per micro step"
    if on_gpus and rate < MIN_BYTES_PER_SECOND:
        return warning("bandwidth", figure, f"ip -br addr; ibstat  # {DEBUG}", **measured)
    return ok("bandwidth", figure, **measured)
