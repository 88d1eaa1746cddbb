"""How fast processes add up a tensor among them: NCCL over all GPUs, or gloo between two processes of the CPU.

The ranks are programs of their own, as in a run: `python3 -m pretraining.doctor.gpu.all_reduce` with torchrun's
variables, for which a file stands in when the doctor starts them.
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

import torch
import torch.distributed as dist

from pretraining import PROJECT_DIR
from pretraining.doctor.finding import Finding, failure, gigabytes, ok, warning
from pretraining.doctor.gpu.links import nvlinks_everywhere

GPU_BYTES, CPU_BYTES = 2**28, 2**24
NUM_CPU_PROCESSES = 2
WARM_ROUNDS, NUM_ROUNDS = 3, 10
LIMIT_SECONDS = 20  # less than the check has, so that what the ranks said is told
LEAST_NVLINK_BYTES_PER_SECOND = 30e9  # PCI Express 4.0 x16 gives no more, so NVLink cannot be in use
STORE_VARIABLE = "PRETRAINING_DOCTOR_STORE"  # the file by which ranks find each other
IMPORTED = "torch is imported"
ASK_NCCL = "NCCL_DEBUG=INFO torchrun --nproc_per_node={} -m pretraining.doctor.gpu.all_reduce"


def all_reduce(_: Sequence[Path]) -> Iterator[Finding]:
    """One all-reduce over all processes that a run would have here."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    size = num_gpus or NUM_CPU_PROCESSES
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_start(rank, size, Path(folder, "store")) for rank in range(size)]
        ends_at = time.monotonic() + LIMIT_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            for rank in ranks:
                rank.wait(max(0.0, ends_at - time.monotonic()))
        for rank in ranks:
            rank.kill()  # which one that has ended does not notice
        told = [rank.communicate() for rank in ranks]
    problem = _problem([rank.returncode for rank in ranks], told)
    if problem is None:
        yield judge(json.loads(told[0][0].splitlines()[-1]), has_nvlink=nvlinks_everywhere())
    elif all(said.startswith(IMPORTED) for said, _ in told):
        yield failure("all-reduce", f"{size} processes: {problem}", ASK_NCCL.format(size))
    else:
        yield warning("all-reduce", f"{size} processes: {problem}, while importing torch", "python3 -m tools.doctor")


def _problem(codes: Sequence[int], told: Sequence[tuple[str, str]]) -> str | None:
    """What ended a rank by itself, or that they waited for each other; None when all are done."""
    failed = [
        error.splitlines() for code, (_, error) in zip(codes, told, strict=True) if code not in (0, -signal.SIGKILL)
    ]
    if failed:
        lines = [line for line in failed[0] if "Error" in line] or failed[0] or ["without a word"]
        return f"one failed, {lines[-1][:200]}"
    return f"no answer within {LIMIT_SECONDS} s" if any(codes) else None


def judge(measured: dict, *, has_nvlink: bool) -> Finding:
    """What the ranks measured; `bus` is what each link carries, and so comparable between numbers of processes."""
    size, bus = measured["size"], measured["bus_bytes_per_second"]
    if size == 1:
        return ok("all-reduce", f"{measured['backend']} starts; one GPU has nothing to exchange", **measured)
    figure = f"{measured['backend']}, {size} processes, {gigabytes(measured['num_bytes'])}: "
    figure += f"{measured['bytes_per_second'] / 1e9:.1f} GB/s, on each link (bus) {bus / 1e9:.1f} GB/s"
    if has_nvlink and bus < LEAST_NVLINK_BYTES_PER_SECOND:
        return warning("all-reduce", f"{figure}: not over NVLink", ASK_NCCL.format(size), **measured)
    return ok("all-reduce", figure, **measured)


def measure() -> dict:
    """In each rank: the mean of some all-reduces, once all are there."""
    size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    backend, num_bytes = ("nccl", GPU_BYTES) if on_gpu else ("gloo", CPU_BYTES)
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(1)
    # torch's own store would listen to the whole network; torchrun, which a user may ask with, has started one.
    store = os.environ.get(STORE_VARIABLE)
    init_method = None if store is None else f"file://{store}"
    dist.init_process_group(backend, init_method=init_method, rank=int(os.environ["RANK"]), world_size=size)
    tensor = torch.zeros(num_bytes // 4, device="cuda" if on_gpu else "cpu")
    for round_number in range(WARM_ROUNDS + NUM_ROUNDS):
        if round_number == WARM_ROUNDS:
            _wait(on_gpu)
            began_at = time.perf_counter()
        dist.all_reduce(tensor)
    _wait(on_gpu)
    rate = num_bytes * NUM_ROUNDS / (time.perf_counter() - began_at)
    dist.destroy_process_group()
    bus = rate * 2 * (size - 1) / size
    return {
        "backend": backend, "size": size, "num_bytes": num_bytes, "bytes_per_second": rate, "bus_bytes_per_second": bus,
    }  # fmt: skip


def _wait(on_gpu: bool) -> None:
    dist.barrier()
    if on_gpu:
        torch.cuda.synchronize()


def _start(rank: int, size: int, store: Path) -> subprocess.Popen[str]:
    words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, STORE_VARIABLE: store, "GLOO_SOCKET_IFNAME": "lo"}
    environment = os.environ | {name: str(value) for name, value in words.items()}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "pretraining.doctor.gpu.all_reduce"]
    return subprocess.Popen(command, cwd=PROJECT_DIR, env=environment, stdout=pipe, stderr=pipe, text=True)


if __name__ == "__main__":
    signal.alarm(3 * LIMIT_SECONDS)  # whoever started it may be gone
    sys.stdout.write(f"{IMPORTED}\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps(measure()) + "\n")
