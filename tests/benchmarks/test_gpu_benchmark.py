"""The benchmark of GPUs: what it would run can be run, and where nothing was measured the page says so."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from benchmarks.gpu import decode_run, stages
from benchmarks.gpu.__main__ import STORED, Found, Task, tasks
from benchmarks.gpu.measure import command_of, figures_of, format_command, is_wanted, machine, run_logged
from benchmarks.gpu.page import NOT_MEASURED, page
from benchmarks.gpu.rows import NUM_SLOT_ROWS, ROWS, SLOT_STEPS, SMALL_ROWS, GpuArguments, Row
from benchmarks.gpu.stages import STAGES, Stage, run_stage
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.deepspeed_config import load_ds_config
from pretraining.generation.decoder import LlamaDecoder
from tests.conftest import HANG_SECONDS, PROJECT_DIR, run_fine
from tests.programs.launching import run_forked_fine
from tests.unit.generation.test_decoder import small_model

CHILD = """
import os, signal, sys, time
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
open(sys.argv[1] + ".part", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)"""
RUNNER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
BENCHMARK = """
import os, sys
from pathlib import Path
from benchmarks.gpu.__main__ import end_like_ctrl_c
from benchmarks.gpu.measure import run_logged
end_like_ctrl_c()
run_logged(sys.argv[2:], Path(sys.argv[1]), os.environ, seconds=600)"""


@pytest.mark.parametrize("row", [*ROWS, *SMALL_ROWS], ids=lambda row: row.name)
def test_every_row_is_a_command_that_pretrain_takes(row: Row, tmp_path: Path) -> None:
    command = command_of(row, GpuArguments(), tmp_path, num_gpus=1)
    arguments = parse_pretrain_arguments(
        "", [*command[command.index("pretrain.py") + 1 :], "--dry_run"]
    )  # without optional packages
    config = load_ds_config(arguments.trainer["deepspeed"])
    assert all(config["zero_optimization"][name] == value for name, value in row.zero.items())
    assert all(config[name] == value for name, value in row.sections.items())
    assert (PROJECT_DIR / f"recipes/benchmark_{row.recipe}.yaml").is_file()
    assert str(tmp_path) not in format_command(row, command, str(tmp_path))


def test_names_tell_rows_apart() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_without_a_gpu_nothing_is_run_and_nothing_invented(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.gpu", "--output", tmp_path / "gpu.md"]
    done = run_forked_fine(sys.executable, *words, env={"CUDA_VISIBLE_DEVICES": ""})
    assert "no GPU here" in done.output
    measured = json.loads(STORED.read_text())["rows"]
    missing = [row for row in ROWS if row.name not in measured]
    assert (tmp_path / "gpu.md").read_text().count(f"| {NOT_MEASURED} |") == len(missing)
    assert not (tmp_path / "gpu.json").exists()


def test_what_was_measured_stands_beside_what_was_not_and_what_failed(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 10.5 - step} for step in (1, 2, 3)]
    seconds = {"data_seconds": 0.1, "optimizer_seconds": 1.0, "total_seconds": 20.0}
    speed = {"overall_tokens_per_second_per_gpu": 12345.6, "mfu": 0.575, "peak_memory_bytes": 130.4e9}
    records.append({"step": 3, "event": "summary", **speed, **seconds})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    measured = figures_of(tmp_path, "", 0) | {"command": "deepspeed pretrain.py"}
    failed = figures_of(tmp_path / "none", "step 1\nerror: --model: does not fit\n[launcher] ended\n", 1)
    found = {"rows": {ROWS[0].name: measured, ROWS[1].name: failed | {"command": "deepspeed pretrain.py"}}}
    text = page(ROWS[:3], found, is_small=False)
    assert "| 3 | 12,346 | 57.5 % |  | 130.4 | 9.5000 | 7.5000 |" in text
    assert f"- {ROWS[1].name}: `error: --model: does not fit`" in text
    assert text.count(f"| {NOT_MEASURED} |") == 1


def test_the_page_names_the_gpus() -> None:
    words = {"hardware": "16 cores", "versions": "torch", "speeds": []}
    for gpus, named in (["NVIDIA H200"] * 2, "2 x NVIDIA H200"), (["A", "B", "A"], "2 x A and 1 x B"), ([], "no GPU"):
        text = page(ROWS, {"rows": {}, "machine": {**words, "gpus": gpus}}, is_small=False)
        assert f"16 cores; {named}; torch." in text


def test_a_row_that_is_done_is_not_run_again() -> None:
    row = SMALL_ROWS[0]
    assert is_wanted(row, {}, GpuArguments(small=True), num_gpus=0)
    assert not is_wanted(row, {row.name: {"num_steps": row.num_steps}}, GpuArguments(small=True), num_gpus=0)
    assert not is_wanted(Row("two", num_gpus=2), {}, GpuArguments(), num_gpus=1)


def test_what_failed_or_had_fewer_steps_comes_after_what_was_never_tried() -> None:
    names = [row.name for row in ROWS[:NUM_SLOT_ROWS]]
    done = {"num_steps": SLOT_STEPS}
    parts = {"decoder as it is": {"failed": "error: no memory"}}
    stages = {STAGES[0].name: {"text": "The council"}, STAGES[1].name: parts}
    found = {"rows": {names[0]: done, names[1]: {"failed": "error: no memory"}}, "stages": stages}
    slot = [task.name for task in tasks(GpuArguments(slot=True), found, num_gpus=1)]
    assert slot == [*names[2:], STAGES[2].name, names[1], STAGES[1].name]
    longer = [task.name for task in tasks(GpuArguments(), found, num_gpus=1)]
    assert longer[: len(names) - 2] == names[2:]
    assert longer[-2:] == names[:2]


def test_a_failure_does_not_replace_what_was_measured() -> None:
    done, failed = {"num_steps": SLOT_STEPS}, {"failed": "error: no memory"}
    for before, after, kept in ((done, failed, done), (failed, done, done), (None, failed, failed)):
        found: Found = {} if before is None else {"row": before}
        Task("row", before is not None, 1.0, partial(dict, after), found).do(ends_at=0.0)
        found["row"].pop("ends_at", None)
        assert found == {"row": kept}


def test_at_the_timeout_the_processes_that_a_run_started_are_killed_too(tmp_path: Path) -> None:
    """The child ignores the signals that a training process would save a checkpoint for."""
    pid_file, seconds = tmp_path / "pid", 1.0
    words = [sys.executable, "-c", RUNNER, CHILD, str(pid_file)]
    while not pid_file.exists():  # on a busy machine the child starts late
        assert run_logged(words, tmp_path / "log", os.environ, seconds=seconds) != 0
        seconds *= 2
        assert seconds < HANG_SECONDS
    assert _wait_until(lambda: _is_gone(int(pid_file.read_text())))
    assert "error: not through after" in (tmp_path / "log").read_text()


def test_a_run_is_killed_when_the_benchmark_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    words = [sys.executable, "-c", BENCHMARK, str(tmp_path / "log"), sys.executable, "-c", RUNNER, CHILD, str(pid_file)]
    with subprocess.Popen(words, cwd=PROJECT_DIR, stderr=subprocess.DEVNULL) as benchmark:
        assert _wait_until(pid_file.exists)
        benchmark.terminate()
    assert _wait_until(lambda: _is_gone(int(pid_file.read_text())))


def _is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet is a zombie."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_until(is_true: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + HANG_SECONDS / 10
    while not is_true() and time.monotonic() < ends_at:
        time.sleep(0.05)
    return is_true()


def test_when_the_time_is_up_nothing_runs_on() -> None:
    assert "not through after 0 s" in machine([], ends_at=time.monotonic())["speeds"][0]
    assert "not through after 0.0 minutes" in run_stage(STAGES[0], GpuArguments(), ends_at=time.monotonic())["failed"]


def test_a_stage_without_its_packages_or_its_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "TEST_PACKAGES", ("pytest", "no_such_package"))
    ends_at = time.monotonic() + HANG_SECONDS
    assert "this Python has no no-such-package" in run_stage(STAGES[2], GpuArguments(), ends_at=ends_at)["failed"]
    lost = Stage("lost", 1.0, lambda place: {"text": (place.folder / "trace.json.gz").read_text()})
    assert "trace.json.gz" in run_stage(lost, GpuArguments(), ends_at=ends_at)["failed"]


def test_the_decoder_is_timed_without_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which on a GPU load kernels and capture a CUDA graph."""
    positions: list[int] = []
    steps_at_clock: list[int] = []

    class Recorder(LlamaDecoder):
        def next_logits(self, ids: list[int], positions_of_rows: list[int]) -> torch.Tensor:
            positions.append(positions_of_rows[0])
            return super().next_logits(ids, positions_of_rows)

    class Clock:
        def perf_counter(self) -> float:
            steps_at_clock.append(len(positions))
            return float(len(positions))

    monkeypatch.setattr(decode_run, "time", Clock())
    first, count = decode_run.PROMPT_LENGTH, decode_run.NUM_TOKENS
    decoder = Recorder(small_model(max_position_embeddings=128), 2, first + count + 1)
    assert decode_run.tokens_per_second(decoder) == 2 * count / count
    assert positions == [first] * 3 + list(range(first, first + count))
    assert steps_at_clock == [3, 3 + count]


# Long: test_without_a_gpu_nothing_is_run_and_nothing_invented starts the same benchmark without wheels.
@pytest.mark.long
def test_the_slot_takes_wheels_and_flags_from_the_folder_of_its_caller(tmp_path: Path) -> None:
    """Another list of wheels is another installation; results go where --output says, seen from the caller."""
    (tmp_path / "wheels").mkdir()
    wheels, sites = [], []
    try:
        for name in ("first_of_slot", "second_of_slot"):
            wheels.append(_write_wheel(tmp_path / "wheels", name))
            python = tmp_path / "python"  # this one, which leaves its path
            python.write_text(f'#!/bin/sh\nprintf "%s" "$PYTHONPATH" > {tmp_path}/path\nexec {sys.executable} "$@"\n')
            python.chmod(0o755)
            env = {"CUDA_VISIBLE_DEVICES": "", "PYTHON": str(python), "PYTHONPATH": ""}
            words = ["bash", PROJECT_DIR / "benchmarks/gpu/slot.sh", "wheels", "--output", "results/gpu.md"]
            run_fine(*words, cwd=tmp_path, env=env)
            sites.append(Path((tmp_path / "path").read_text().split(":")[1]))
            assert sorted(path.name for path in sites[-1].glob("*.py")) == [f"{wheel}.py" for wheel in wheels]
        assert sites[0] != sites[1]
        assert (tmp_path / "results/gpu.md").is_file()
    finally:
        for site in sites:
            shutil.rmtree(site, ignore_errors=True)


def _write_wheel(folder: Path, name: str) -> str:
    info = f"{name}-1.dist-info"
    with ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return name


def test_a_row_for_more_host_memory_is_left_out() -> None:
    row = Row("offload", host_gigabytes=10**6)
    assert not is_wanted(row, {}, GpuArguments(), num_gpus=8)
    assert all(row.host_gigabytes >= 100 for row in ROWS if "offload" in row.ds_config)


def test_a_row_for_several_gpus_is_left_out_on_one() -> None:
    (row,) = [row for row in ROWS if "overlap_comm" in row.zero]
    assert not is_wanted(row, {}, GpuArguments(), num_gpus=1)
    assert is_wanted(row, {}, GpuArguments(), num_gpus=2)


# Long: above are the tests of tasks, of stages and of the slot without a GPU; programs/resume/test_elastic.py resumes.
@pytest.mark.long
@pytest.mark.launch
def test_the_slot_runs_from_start_to_page_and_resumes(tmp_path: Path) -> None:
    """With the quickstart's model, which takes the stages of a GPU on any machine."""
    output = tmp_path / "results/slot.md"
    words = ["bash", PROJECT_DIR / "benchmarks/gpu/slot.sh", "--small", "--minutes", 60, "--output", output]
    env = {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = run_fine(*words, cwd=tmp_path, env=env)
    found = json.loads(output.with_suffix(".json").read_text())
    assert list(found["stages"]) == [stage.name for stage in STAGES]
    assert [figures for figures in (*found["stages"].values(), *found["rows"].values()) if "failed" in figures] == []
    assert list(found["rows"]) == [SMALL_ROWS[0].name]
    assert output.with_name("slot-trace.json.gz").stat().st_size > 1000
    text = output.read_text()
    for part in (STAGES[0].name[1:], "Text: `The council", "Self CPU", "| decoder as it is |", "skipped"):
        assert part in text
    found["rows"].clear()
    output.with_suffix(".json").write_text(json.dumps(found))
    done = run_fine(*words, cwd=tmp_path, env=env)
    started = [line for line in done.stderr.splitlines() if line.endswith(" ...")]
    assert started == [f"{SMALL_ROWS[0].name} ..."], "only what is missing"
