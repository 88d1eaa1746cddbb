"""The library that makes a disk odd, compiled once, and processors in the place of this one."""

from pathlib import Path

import pytest

from pretraining.system import host
from pretraining.system.torch_environment import KERNELS_VARIABLE
from tests.fakes.preloads import compiled

X86 = "processor\t: 0\nmodel name\t: {}\nflags\t\t: fpu sse sse2 {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
AVX512 = "avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
PROCESSORS = {
    "AMD EPYC Zen 4": (X86.format("AMD EPYC", AVX512 + " avx512_bf16 avx512_vnni"), "avx512_bf16", "AVX512,STRICT"),
    "Xeon Cascade Lake": (X86.format("Intel Xeon", AVX512 + " avx512_vnni"), None, "AVX512,STRICT"),
    "Xeon Sapphire Rapids": (
        X86.format("Intel Xeon", AVX512 + " avx512_bf16 amx_tile amx_bf16"),
        "amx_bf16",
        "AVX512,STRICT",
    ),
    "Zen 2": (X86.format("AMD Ryzen", "avx avx2 f16c"), None, "AVX2,STRICT"),
    "Westmere": (X86.format("Intel Xeon", "ssse3 sse4_1"), None, "COMPATIBLE"),
    "Graviton 3": ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n", "bf16", None),
    "Graviton 2": ("processor\t: 0\nFeatures\t: fp asimd atomics\n", None, None),
    "not told": ("", None, None),
}


@pytest.fixture(scope="session")
def odd_disk_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("odd_disk.c", tmp_path_factory)


@pytest.fixture(params=PROCESSORS)
def described(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str | None, ...]:
    """A processor in the place of this one: its bf16 instructions, and MKL's mode."""
    text, bf16, mode = PROCESSORS[request.param]
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(host, "CPU_INFO", path)
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    return bf16, mode
