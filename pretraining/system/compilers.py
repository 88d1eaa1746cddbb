"""What torch.compile starts on this machine: a C++ compiler, on a GPU a C compiler too, with the headers of Python."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

INSTALL_COMPILERS = "sudo apt-get install build-essential python3-dev"


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
