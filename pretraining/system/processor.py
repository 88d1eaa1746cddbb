"""What this machine's processor can do, and kernels that compute the same wherever a tensor happens to lie.

MKL adds up in another order when a matrix begins at another alignment, so that two starts of the same run could differ
in the last bits. With MKL_CBWR (Intel's "conditional numerical reproducibility") in its STRICT mode a product depends
on its values alone. On a Zen 4 a training step of a model 192 wide takes 1.02 times the processor time with it
(median of 6 pairs of 35 steps in turns, 0.99 to 1.03). The mode COMPATIBLE, for processors without AVX2, computes at a
third of the speed.
"""

import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
KERNELS_VARIABLE = "MKL_CBWR"
# What computes bf16 products; elsewhere oneDNN emulates them, at half the speed of fp32 and less.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def instructions(cpu_info: Path = CPU_INFO) -> frozenset[str]:
    """The instruction sets that the processor names: `flags` on x86, `Features` on Arm; none where it is not known."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").split())


def bf16_instruction() -> str | None:
    """The instruction set by which this processor computes bf16, None where that would be emulated."""
    return next((name for name in BF16_INSTRUCTIONS if name in instructions()), None)


def use_reproducible_kernels() -> None:
    """Have MKL compute the same at any alignment, before it first computes; a setting of the user's own stays.

    MKL is on x86 alone. Elsewhere nothing is set.
    """
    names = instructions()
    if "sse2" in names:
        mode = "AVX512,STRICT" if names >= AVX512 else "AVX2,STRICT" if "avx2" in names else "COMPATIBLE"
        os.environ.setdefault(KERNELS_VARIABLE, mode)


def kernels() -> str:
    """How matrix products are computed here, as a run records it."""
    return f"{KERNELS_VARIABLE}={os.environ.get(KERNELS_VARIABLE, '')}"
