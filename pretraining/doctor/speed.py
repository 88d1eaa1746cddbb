"""Measured speed of matrix multiplication and copies: of each GPU, or of the CPU where there is no GPU."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, ok, warning, warning_if
from pretraining.system.gpus import peak_flops_per_second

GPU_SIDE, CPU_SIDE = 8192, 1024  # of square matrices
GPU_COPY_BYTES, CPU_COPY_BYTES, HOST_COPY_BYTES = 2**30, 2**27, 2**28
MEASURED_SECONDS, MAX_ROUNDS = 0.2, 50
MIN_SHARE_OF_PEAK = 0.5  # a sound H200 reaches 0.80 of its data sheet
MIN_SHARE_OF_FASTEST = 0.9  # every step waits for the slowest GPU


def speed(_: Sequence[Path]) -> Iterator[Finding]:
    """Matrix multiplication and copies, on every GPU or on the CPU."""
    import torch

    if not torch.cuda.is_available():
        yield from _cpu_speed()
        return
    flops = []
    for number in range(torch.cuda.device_count()):
        torch.cuda.set_device(number)
        flops.append(_gpu_flops_per_second())
        peak = peak_flops_per_second(torch.cuda.get_device_name(number))
        yield assess_flops(number, flops[-1], peak=peak)
        yield _gpu_copies(number)
    if min(flops) < MIN_SHARE_OF_FASTEST * max(flops):
        slowest, share = flops.index(min(flops)), min(flops) / max(flops)
        figure = f"GPU {slowest} has {share:.0%} of the speed of the fastest, and every step waits for it"
        yield warning("slowest GPU", figure, f"nvidia-smi -q -i {slowest} -d PERFORMANCE,CLOCK,TEMPERATURE")


def assess_flops(number: int, flops: float, *, peak: float | None) -> Finding:
    """A GPU's measured bf16 FLOP/s against its data sheet."""
    name, figure = f"GPU {number} matmul", f"{flops / 1e12:,.0f} TFLOP/s in bf16 ({GPU_SIDE} x {GPU_SIDE})"
    figures = {"flops_per_second": flops, "peak_flops_per_second": peak}
    if peak is None:
        return ok(name, f"{figure}; its peak is not known", **figures)
    figure += f", {flops / peak:.0%} of its peak of {peak / 1e12:,.0f}"
    is_slow = flops < MIN_SHARE_OF_PEAK * peak
    figure += ": is it busy, too hot or throttled?" if is_slow else ""
    return warning_if(is_slow, name, figure, f"nvidia-smi -q -i {number} -d PERFORMANCE,CLOCK,POWER", **figures)


def _gpu_flops_per_second() -> float:
    import torch

    first, second = (torch.randn(GPU_SIDE, GPU_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(first)
    return 2 * GPU_SIDE**3 / _seconds(lambda: torch.mm(first, second, out=product), torch.cuda.synchronize)


def _gpu_copies(number: int) -> Finding:
    """Bandwidth within the GPU's memory, where each byte is read and written, and from pinned host memory."""
    import torch

    source = torch.zeros(GPU_COPY_BYTES, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    pinned = torch.zeros(HOST_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    within = 2 * GPU_COPY_BYTES / _seconds(lambda: target.copy_(source), torch.cuda.synchronize)
    start = target[:HOST_COPY_BYTES]
    host = HOST_COPY_BYTES / _seconds(lambda: start.copy_(pinned, non_blocking=True), torch.cuda.synchronize)
    figure = f"{within / 1e12:.2f} TB/s in its memory, {host / 1e9:.0f} GB/s from the host's"
    return ok(f"GPU {number} memory", figure, memory_bytes_per_second=within, host_bytes_per_second=host)


def _cpu_speed() -> Iterator[Finding]:
    import torch

    speeds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        first, second = (torch.randn(CPU_SIDE, CPU_SIDE, dtype=dtype) for _ in range(2))
        speeds[name] = 2 * CPU_SIDE**3 / _seconds(lambda a=first, b=second: torch.mm(a, b))  # type: ignore[misc]
    threads, faster = torch.get_num_threads(), max(speeds, key=lambda name: speeds[name])
    shown = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in speeds.items())
    figures = {f"{name}_flops_per_second": flops for name, flops in speeds.items()}
    figure = f"{shown} on {threads} threads ({CPU_SIDE} x {CPU_SIDE}); {faster} is faster here"
    yield ok("CPU matmul", figure, **figures, threads=threads)
    source = torch.zeros(CPU_COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = 2 * CPU_COPY_BYTES / _seconds(lambda: target.copy_(source))
    yield ok("CPU memory", f"{copied / 1e9:.0f} GB/s read and written", memory_bytes_per_second=copied)


def _seconds(run: Callable[[], object], wait: Callable[[], object] = lambda: None) -> float:
    """Mean seconds per call, after one call to warm up."""
    run()
    wait()
    started_at = time.perf_counter()
    num_rounds, elapsed = 0, 0.0
    while elapsed < MEASURED_SECONDS and num_rounds < MAX_ROUNDS:
        run()
        wait()
        num_rounds, elapsed = num_rounds + 1, time.perf_counter() - started_at
    return elapsed / num_rounds
