"""What torch finds in its environment: variables that it and MKL read when they are imported, and compilers."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

from pretraining.system.cores import compute_cores
from pretraining.system.host import instructions
from pretraining.system.launchers import num_local_processes

THREADS_VARIABLE = "OMP_NUM_THREADS"
KERNELS_VARIABLE = "MKL_CBWR"
ALLOCATOR_VARIABLE = "PYTORCH_ALLOC_CONF"
OLD_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # which torch still reads
DRIVER_DEVICE = Path("/dev/nvidiactl")  # there is one where NVIDIA's driver is
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
INSTALL_COMPILERS = "sudo apt-get install build-essential python3-dev"


def share_cores() -> None:
    """Give each process of this machine its part of the cores; torch reads this once, when it is imported.

    A number that the user has chosen stays. The 1 of torchrun does not: AdamW of an offloaded optimizer would run on
    one core per process.
    """
    if THREADS_VARIABLE not in os.environ or _torchrun_chose_threads():
        os.environ[THREADS_VARIABLE] = str(max(1, compute_cores() // num_local_processes()))


def _torchrun_chose_threads() -> bool:
    """Whether the 1 is torchrun's, for two processes or more: then the launcher itself was started without it."""
    if os.environ[THREADS_VARIABLE] != "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    with suppress(OSError):
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        return not any(entry.startswith(f"{THREADS_VARIABLE}=".encode()) for entry in started_with)
    return False


def use_reproducible_kernels() -> None:
    """Have MKL compute the same at any alignment, before it first computes; a setting of the user's own stays.

    MKL adds up in another order when a matrix begins at another alignment, so that two starts of the same run could
    differ in the last bits. With MKL_CBWR (Intel's "conditional numerical reproducibility") in its STRICT mode a
    product depends on its values alone. On a Zen 4 a training step of a model 192 wide takes 1.02 times the processor
    time with it (median of 6 pairs of 35 steps in turns, 0.99 to 1.03). The mode COMPATIBLE, for processors without
    AVX2, computes at a third of the speed. MKL is on x86 alone. Elsewhere nothing is set.
    """
    names = instructions()
    if "sse2" in names:
        mode = "AVX512,STRICT" if names >= AVX512 else "AVX2,STRICT" if "avx2" in names else "COMPATIBLE"
        os.environ.setdefault(KERNELS_VARIABLE, mode)


def kernels() -> str:
    """How matrix products are computed here, as a run records it."""
    return f"{KERNELS_VARIABLE}={os.environ.get(KERNELS_VARIABLE, '')}"


def use_expandable_segments() -> None:
    """Let torch's allocator grow its segments, before it allocates on a GPU; a setting of the user's own stays.

    Segments of fixed size cannot be merged. So the copies of gradients in an optimizer step would not fit in the place
    of freed activations.
    """
    is_set = any(name in os.environ for name in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES))
    if DRIVER_DEVICE.exists() and not is_set:
        os.environ[ALLOCATOR_VARIABLE] = "expandable_segments:True"


def compiler_problem(*, on_gpu: bool = False) -> str | None:
    """Why torch.compile cannot compile here, with the remedy; None if it can.

    torch 2.13 starts $CXX or g++, and no other compiler (torch/_inductor/config.py); what it builds for a CPU is a
    module of Python. On a GPU Triton builds the launchers of its kernels, with $CC, gcc or clang
    (triton/runtime/build.py).
    """
    checks = {
        f"there is no C++ compiler ({_names('CXX', 'g++')}); install g++, or set CXX to another one": (
            _is_there("CXX", "g++")
        ),
        f"Python.h is not in {sysconfig.get_path('include')}; install the headers of this Python, e.g. python3-dev": (
            Path(sysconfig.get_path("include"), "Python.h").is_file()
        ),
        # torch 2.13 does not quote it for the linker.
        f"torch.compile does not work where the environment's path contains spaces ({sys.prefix}); move it": (
            len(sys.prefix.split()) == 1
        ),
    }
    if on_gpu:
        checks |= {
            "the package triton is missing, by which torch computes on GPUs; install torch for CUDA": (
                importlib.util.find_spec("triton") is not None
            ),
            f"there is no C compiler ({_names('CC', 'gcc', 'clang')}); install gcc, or set CC to another one": (
                _is_there("CC", "gcc", "clang")
            ),
        }
    return next((problem for problem, is_fine in checks.items() if not is_fine), None)


def _names(variable: str, *programs: str) -> str:
    return f"{variable}={os.environ[variable]}" if variable in os.environ else ", ".join(programs)


def _is_there(variable: str, *programs: str) -> bool:
    chosen = (os.environ[variable],) if variable in os.environ else programs
    return any(map(shutil.which, chosen))
