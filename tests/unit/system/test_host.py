"""What processor and memory can do is read, not assumed."""

import json
import platform
import re
from pathlib import Path

import pytest

from pretraining.system import host
from pretraining.system.host import available_host_bytes, bf16_instruction, instructions
from pretraining.system.torch_environment import KERNELS_VARIABLE
from pretraining.training.config.trainer_arguments import choose_precision
from tests.conftest import python, run_fine, within_mount
from tests.programs.launching import train, training_flags
from tests.unit.system.conftest import X86

LONGER = ["--lr_scheduler_type", "constant", "--warmup_steps", 0]  # can be made longer


def test_precision_follows_the_instructions(described: tuple[str | None, ...]) -> None:
    bf16, _ = described
    assert bf16_instruction() == bf16
    assert choose_precision({"bf16": None}, has_gpu=False) == ("fp32" if bf16 is None else "bf16")
    assert choose_precision({"bf16": True}, has_gpu=False) == "bf16"
    assert choose_precision({"bf16": None}, has_gpu=False, recorded="fp32") == "fp32", "a run keeps its own"
    assert choose_precision({"bf16": None}, has_gpu=False, recorded="bf16") == "bf16"


TWO_THREADS = """
import torch, pretrain
from pretraining.cli.program import run_program
torch.set_num_threads(2)
run_program(pretrain.main)
"""


@pytest.mark.launch
def test_a_resume_on_another_processor_keeps_its_precision_and_says_so(sample_store: Path, tmp_path: Path) -> None:
    (tmp_path / "two_threads.py").write_text(TWO_THREADS)
    run_dir = tmp_path / "run"
    first = train("fork", sample_store, run_dir, *LONGER, "--max_steps", 3, script=str(tmp_path / "two_threads.py"))
    assert "precision:" not in first.output, "--bf16 false was asked for"
    other = {KERNELS_VARIABLE: "COMPATIBLE"}  # and one thread, as each fork has
    done = train("fork", sample_store, run_dir, *LONGER, "--max_steps", 4, "--bf16", "none", env=other)
    assert "precision: fp32 (as the run was started)" in done.output
    assert "computes differently than at its last start (kernels MKL_CBWR=" in done.output
    assert re.search(r"threads 2 -> 1\)", done.output)
    assert "the same to rounding, not to the bit" in done.output


# What a processor without AVX2 makes of torch, oneDNN and MKL, by their own switches.
WITHOUT_AVX2 = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
OTHER_MACHINES = {
    "without AVX2": (X86.format("Westmere", "ssse3 sse4_1 sse4_2"), WITHOUT_AVX2, "Westmere"),
    "of an unknown architecture": ("cpu : unheard of\nisa : rv64\n", {}, platform.machine()),
}


# Long: the tests above hold what programs decide by its description, that of a resume that they start with others.
@pytest.mark.long
@pytest.mark.launch
@pytest.mark.parametrize("name", OTHER_MACHINES)
def test_programs_run_on_a_processor(name: str, sample_store: Path, tmp_path: Path) -> None:
    """With another /proc/cpuinfo in place of this machine's."""
    text, env, processor_name = OTHER_MACHINES[name]
    (tmp_path / "cpuinfo").write_text(text)
    within = within_mount(f"mount --bind {tmp_path}/cpuinfo /proc/cpuinfo")
    flags = training_flags(sample_store, tmp_path / "run", "--max_steps", 2, "--bf16", "none")
    done = run_fine(*within, *python("pretrain.py", *flags), env=env)
    assert ", fp32\n" in done.output, "bf16 would be emulated"
    assert json.loads((tmp_path / "run/run.json").read_text())["hardware"]["cpu"] == processor_name
    done = run_fine(*within, *python("generate.py", "--model", tmp_path / "run", "--max_new_tokens", 3), env=env)
    assert "parameters in float32 on cpu" in done.output
    run_fine(*within, *python("preprocess.py", "--output_dir", tmp_path / "blocks"), env=env)


def test_a_processor_that_is_not_described_has_no_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CPU_INFO", tmp_path / "not there")
    assert instructions() == frozenset()
    assert host.processor_name() == (platform.machine() or "unknown")


GROUPS = {
    "version 2": ("0::/job/step", "sys/fs/cgroup/job", "memory.max", "memory.current", ""),
    "version 1": (
        "9:cpu:/\n4:memory:/job/step",
        "sys/fs/cgroup/memory/job",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
    "version 1 in a container": (
        "4:memory:/docker/0123",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
}


def test_available_memory_is_read() -> None:
    assert 10**8 < available_host_bytes() < 10**14


@pytest.mark.parametrize("name", GROUPS)
def test_files_in_the_cache_of_a_control_group_are_room(name: str, tmp_path: Path) -> None:
    own, place, limit, used, prefix = GROUPS[name]
    group = tmp_path / place
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own + "\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 2000 kB\n")
    (group / limit).write_text("1000000\n")
    (group / used).write_text("900000\n")
    (group / "memory.stat").write_text(f"rss 200000\n{prefix}inactive_file 100000\n{prefix}active_file 600000\n")
    assert available_host_bytes(tmp_path) == 800_000
    (group / limit).write_text("max\n")
    assert available_host_bytes(tmp_path) == 2_048_000
