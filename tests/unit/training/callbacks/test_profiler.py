"""--profile: which steps are traced, what is written about them, and that the run stays the same."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerControl, TrainerState

from pretraining.cli.arguments.run import ObservabilityArguments
from pretraining.errors import UserError
from pretraining.training.callbacks import profiler
from pretraining.training.callbacks.profiler import memory_snapshot, write_profile
from tests.conftest import assert_one_error
from tests.programs.launching import figures, records, train, try_to_train

FLAGS = ["--save_strategy", "no", "--eval_strategy", "no", "--export", "false", "--max_steps", 2]


def run_of(text: str | None, *, num_steps: int = 10) -> Any:
    observability = ObservabilityArguments(profile=text)
    return SimpleNamespace(num_steps=num_steps, arguments=SimpleNamespace(observability=observability))


def test_steps_are_one_or_several() -> None:
    assert [run_of(text).arguments.observability.profiled_steps for text in (None, "3", "3:2")] == [
        None,
        range(3, 4),
        range(3, 5),
    ]


@pytest.mark.parametrize("text", ["0", "3:0", "a", "3:", ":3", "-1", "3:2:1", "1e3", ""])
def test_other_texts_are_rejected(text: str) -> None:
    with pytest.raises(UserError, match=r"--profile .*: is not STEP or STEP:COUNT; use e\.g\. 10 or 10:2"):
        ObservabilityArguments(profile=text)


def test_the_table_has_the_ten_operations_that_take_most(tmp_path: Path) -> None:
    matrix = torch.ones(64, 64)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recording:
        for operation in (torch.mm, torch.add, torch.mul, torch.sub, torch.div, torch.maximum, torch.minimum):
            operation(matrix, matrix)
        for function in (torch.exp, torch.sin, torch.cos, torch.tanh, torch.abs):
            function(matrix)
    trace, costs = write_profile(recording, tmp_path / "profile", "step-1")
    lines = costs.read_text().splitlines()
    assert sum("aten::" in line for line in lines) == 10
    assert all(title in lines[1] for title in ("Name", "Self CPU %", "# of Calls"))
    with gzip.open(trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"aten::mm", "aten::tanh"} <= names


def test_without_a_gpu_or_a_profile_an_error_of_memory_stays_what_it_is() -> None:
    for text in (None, *([] if torch.cuda.is_available() else ["3"])):
        with pytest.raises(torch.OutOfMemoryError), memory_snapshot(run_of(text)):
            raise torch.OutOfMemoryError("CUDA out of memory")


class MemoryHistory:
    """In place of CUDA's: whether it is recorded, and an empty file for each snapshot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(profiler, "has_gpu", lambda: True)
        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: self.calls.append(options))
        monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).touch())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("NCCL error"), None])
def test_memory_that_runs_out_on_a_gpu_leaves_a_snapshot(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    history, run = MemoryHistory(monkeypatch), run_of("3")
    monkeypatch.setenv("RANK", "3")
    run.run_dir = tmp_path
    with pytest.raises(type(error)) if error else nullcontext() as found, memory_snapshot(run):
        assert history.calls == [{"max_entries": profiler.MAX_ALLOCATIONS}]
        if error:
            raise error
    path = tmp_path / "profile/memory-rank-3.pickle"
    is_memory = isinstance(error, torch.OutOfMemoryError)
    assert found is None or found.value is error
    assert path.is_file() is is_memory
    messages = [f"out of memory: {path} has all allocations (open it at https://docs.pytorch.org/memory_viz)"]
    assert [record.getMessage() for record in caplog.records] == (messages if is_memory else [])


def test_a_snapshot_that_cannot_be_written_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MemoryHistory(monkeypatch)
    run = run_of("3")
    run.run_dir = tmp_path / "missing"
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"), memory_snapshot(run):
        raise torch.OutOfMemoryError("CUDA out of memory")


def end_step(callback: profiler.Profiler, step: int, *, rank: int) -> None:
    state = TrainerState(global_step=step - 1, max_steps=10, is_world_process_zero=rank == 0)
    callback.step_begin(state, TrainerControl())
    state.global_step = step
    callback.step_end(state, TrainerControl())


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_ends_its_memory_history_after_as_many_steps_also_of_a_rollback(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, written = MemoryHistory(monkeypatch), []
    monkeypatch.setattr(profiler, "profile", lambda **_: SimpleNamespace(start=lambda: None, stop=lambda: None))
    monkeypatch.setattr(
        profiler, "write_profile", lambda *arguments: written.append(arguments[2]) or (tmp_path, tmp_path)
    )
    trainer: Any = SimpleNamespace(meter=Meter(), run_config=SimpleNamespace(run_dir=tmp_path))
    callback = profiler.Profiler(trainer, range(3, 6))
    for step in (2, 3, 2):
        end_step(callback, step, rank=rank)
        assert history.calls == written == []
    end_step(callback, 3, rank=rank)  # the third since the first of them
    assert history.calls == [{"enabled": None}]
    assert written == (["steps-3-5"] if rank == 0 else [])
    for step in (4, 5):
        end_step(callback, step, rank=rank)
    assert len(history.calls) == 1
    assert len(written) == (rank == 0)


class Meter:
    """Whether the time of steps is paused."""

    is_paused = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.is_paused = True
        yield
        self.is_paused = False


def test_all_that_the_profile_takes_is_within_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    found = []

    class Recording(profile):
        def __getattribute__(self, name: str) -> Any:
            if name in ("start", "stop", "export_chrome_trace", "key_averages"):
                found.append((name, meter.is_paused))
            return super().__getattribute__(name)

    monkeypatch.setattr(profiler, "profile", Recording)
    trainer: Any = SimpleNamespace(meter=meter, run_config=SimpleNamespace(run_dir=tmp_path))
    callback = profiler.Profiler(trainer, range(1, 2))
    state = TrainerState(global_step=0, max_steps=2, is_world_process_zero=True)
    callback.step_begin(state, TrainerControl())
    assert not meter.is_paused, "the step itself is counted"
    state.global_step = 1
    callback.step_end(state, TrainerControl())
    assert found == [(name, True) for name in ("start", "stop", "export_chrome_trace", "key_averages")]
    assert len(list((tmp_path / "profile").iterdir())) == 2


@pytest.mark.launch
@pytest.mark.guarantee("--profile changes no loss, and its time is not counted as time of a step.")
def test_a_profiled_run_is_the_same_run(sample_store: Path, tmp_path: Path) -> None:
    train("2 ranks", sample_store, tmp_path / "plain", *FLAGS)
    done = train("2 ranks", sample_store, tmp_path / "profiled", *FLAGS, "--profile", "1:2")  # all: no other ones
    assert figures(tmp_path / "profiled") == figures(tmp_path / "plain")
    folder = tmp_path / "profiled/profile"
    assert {path.name for path in folder.iterdir()} == {"trace-steps-1-2.json.gz", "costs-steps-1-2.txt"}
    assert f"profile: {folder}/trace-steps-1-2.json.gz (open it at https://ui.perfetto.dev" in done.stderr
    assert f"the 10 largest costs: {folder}/costs-steps-1-2.txt" in done.stderr
    with gzip.open(folder / "trace-steps-1-2.json.gz") as file:
        events = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    num_updates = sum(name.startswith("Optimizer.step#") for name in events)
    assert num_updates > 0
    assert num_updates % 2 == 0, "as many updates in each of the two steps"
    assert any("gloo:" in name or "c10d::" in name for name in events), "the other process is waited for in it"
    profiled = records(tmp_path / "profiled")[-1]
    assert profiled["other_seconds"] > 0


@pytest.mark.launch
def test_a_mistake_is_one_line_before_anything_is_loaded(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", *FLAGS, "--profile", "2:2")
    assert_one_error(done, "--profile 2:2: the run ends after step 2; use steps up to that one, or a longer run")
    assert not (tmp_path / "run").exists()


@pytest.mark.launch
def test_a_run_that_is_past_its_profile_resumes(sample_store: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--save_strategy", "steps", "--save_steps", 2, "--lr_scheduler_type", "constant"]
    train("1 rank", sample_store, tmp_path / "run", *flags)
    done = train("1 rank", sample_store, tmp_path / "run", *flags, "--max_steps", 3, "--profile", "2")
    assert "--profile: step 2 is done already, so nothing is profiled; use one after step 2" in done.stderr
    assert not (tmp_path / "run/profile").exists()
