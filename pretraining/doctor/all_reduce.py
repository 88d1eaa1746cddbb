"""Measured all-reduce: NCCL over all GPUs, or gloo between processes on CPUs.

The ranks are separate programs, as in a run: `python3 -m pretraining.doctor.all_reduce` with torchrun's variables.
Ranks that the doctor starts on one machine meet in a file instead of a port.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretraining import PROJECT_DIR
from pretraining.doctor.devices import has_nvlink_everywhere
from pretraining.doctor.finding import Finding, failure, ok, warning_if
from pretraining.system.formatting import format_bytes
from pretraining.system.machines.network import own_end, use_interface

GPU_BYTES, CPU_BYTES = 2**28, 2**24
NUM_CPU_PROCESSES = 2
NUM_WARMUP_ROUNDS, NUM_ROUNDS = 3, 10
SLOW_SECONDS = 0.5  # of the first round; then a single one is measured, or a slow network would take minutes
# From the moment that every rank has imported torch, however long a cold disk takes for that. What is left is to open
# the GPUs and to start NCCL: from a disk at 100 MB/s its library of 0.3 GB comes in 3 s; 6 times that counts as a hang.
LIMIT_SECONDS = 18
MAX_RANK_SECONDS = 60  # of a rank whose parent is gone
MIN_NVLINK_BYTES_PER_SECOND = 30e9  # PCI Express 4.0 x16 gives no more, so below it NVLink is not in use
STORE_VARIABLE = "PRETRAINING_DOCTOR_STORE"  # the file in which the ranks meet
READY = "torch is imported"
DEBUG_NCCL = "NCCL_DEBUG=INFO torchrun --nproc_per_node={} -m pretraining.doctor.all_reduce"


def all_reduce(_folders: Sequence[Path]) -> Iterator[Finding]:
    """One all-reduce over all processes that a run would have here."""
    import torch

    size = (torch.cuda.device_count() if torch.cuda.is_available() else 0) or NUM_CPU_PROCESSES
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(_start(rank, size, Path(folder, "store"))) for rank in range(size)]
        pipes = [(rank.stdout, rank.stderr) for rank in ranks if rank.stdout and rank.stderr]
        for output, _ in pipes:
            output.readline()  # READY; the limit of the check is that of the imports
        deadline = time.monotonic() + LIMIT_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            for rank in ranks:
                rank.wait(max(0.0, deadline - time.monotonic()))
        for rank in ranks:
            rank.kill()  # without effect on one that has ended
        exit_codes = [rank.wait() for rank in ranks]
        outputs, errors = [output.read() for output, _ in pipes], [error.read() for _, error in pipes]
    problem = _problem(exit_codes, errors)
    if problem is None:
        yield assess(json.loads(outputs[0].splitlines()[-1]), has_nvlink=has_nvlink_everywhere())
    else:
        yield failure("all-reduce", f"{size} processes: {problem}", DEBUG_NCCL.format(size))


def _problem(exit_codes: Sequence[int], errors: Sequence[str]) -> str | None:
    """The error of a rank, or that the ranks hang; None when all are done."""
    failed = [text for code, text in zip(exit_codes, errors, strict=True) if code not in (0, -signal.SIGKILL)]
    if failed:
        return f"one failed, {last_error(failed[0], 'without a message')}"
    return f"no answer within {LIMIT_SECONDS} s" if any(exit_codes) else None


def last_error(text: str, default: str) -> str:
    r"""The last line that names an error, or else the last one; `default` where there is none.

    >>> last_error("Traceback\nImportError: no NCCL\nbye", "nothing")
    'ImportError: no NCCL'
    """
    lines = [line for line in text.splitlines() if line.strip()] or [default]
    return ([line for line in lines if "Error" in line] or lines)[-1][:200]


def assess(measured: dict, *, has_nvlink: bool) -> Finding:
    """The measured rates; `bus` is what each link carries, which is comparable between numbers of processes."""
    size, bus = measured["size"], measured["bus_bytes_per_second"]
    if size == 1:
        return ok("all-reduce", f"{measured['backend']} starts; one GPU has nothing to exchange", **measured)
    figure = f"{measured['backend']}, {size} processes, {format_bytes(measured['num_bytes'])}: "
    figure += f"{measured['bytes_per_second'] / 1e9:.1f} GB/s, on each link (bus) {bus / 1e9:.1f} GB/s"
    is_slow = has_nvlink and bus < MIN_NVLINK_BYTES_PER_SECOND
    figure += ": not over NVLink" if is_slow else ""
    return warning_if(is_slow, "all-reduce", figure, DEBUG_NCCL.format(size), **measured)


def measure() -> dict:
    """Run in each rank: the mean rate of some all-reduces, once all ranks are there."""
    import torch
    import torch.distributed as dist

    size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    backend, num_bytes, device = ("nccl", GPU_BYTES, "cuda") if on_gpu else ("gloo", CPU_BYTES, "cpu")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(1)
    # torch's own store would listen on all network interfaces; torchrun has started one already.
    store = os.environ.get(STORE_VARIABLE)
    if store is None:
        use_interface(own_end(os.environ["MASTER_ADDR"]))  # as in a run: gloo's choice may be the loopback interface
    init_method = None if store is None else f"file://{store}"
    dist.init_process_group(backend, init_method=init_method, rank=int(os.environ["RANK"]), world_size=size)
    rate = _mean_rate(torch.zeros(num_bytes // 4, device=device))
    dist.destroy_process_group()
    rates = {"bytes_per_second": rate, "bus_bytes_per_second": rate * 2 * (size - 1) / size}
    return {"backend": backend, "size": size, "num_bytes": num_bytes, **rates}


def _mean_rate(tensor: Any) -> float:
    """Bytes of `tensor` that are summed over all ranks per second."""
    import torch
    import torch.distributed as dist

    def seconds_per_round(num_rounds: int) -> float:
        started_at = time.perf_counter()
        for _ in range(num_rounds):
            dist.all_reduce(tensor)
        dist.barrier()
        if tensor.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - started_at) / num_rounds

    dist.barrier()  # connects the ranks, which takes NCCL seconds
    num_bytes, slowest = tensor.nbytes, torch.full((1,), seconds_per_round(1), device=tensor.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)  # all ranks have to take the same number of rounds
    if slowest.item() > SLOW_SECONDS:
        return num_bytes / seconds_per_round(1)
    seconds_per_round(NUM_WARMUP_ROUNDS)
    return num_bytes / seconds_per_round(NUM_ROUNDS)


def _start(rank: int, size: int, store: Path) -> subprocess.Popen[str]:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, STORE_VARIABLE: store}
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"} | {name: str(value) for name, value in variables.items()}
    environment.pop("NCCL_DEBUG", None)  # its lines would fill the pipes, which are read at the end
    command, pipe = [sys.executable, "-m", "pretraining.doctor.all_reduce"], subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT_DIR, env=environment, stdout=pipe, stderr=pipe, text=True)


if __name__ == "__main__":
    signal.alarm(MAX_RANK_SECONDS)
    import torch  # noqa: F401 - before the line that reports it

    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps(measure()) + "\n")
