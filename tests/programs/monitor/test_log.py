"""What a run tells of itself: records whose parts sum to the whole, events, curves in which each step is once."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.runs.checksums import read_complete
from pretraining.runs.compare import first_difference
from pretraining.training.config.layout import this_machine
from pretraining.training.dry_run.dry_run import local_mixture
from pretraining.training.dry_run.plan import make_plan
from pretraining.training.metrics.throughput import PARTS
from tests.programs.launching import (
    BLOCK_LENGTH,
    BLOCKS_PER_STEP,
    NUM_STEPS,
    events,
    figures,
    records,
    train,
    training_flags,
    try_to_train,
)

pytestmark = pytest.mark.launch

FLAGS = ["--save_steps", 3, "--eval_steps", 3]
ALWAYS = {"step", "epoch", "tokens", "loss", "smoothed_loss", "perplexity", "accuracy", "learning_rate", "grad_norm"}
ALWAYS |= {"non_finite_steps", "spikes", "seconds_left", "logged_at", "host_memory_bytes", "interval_seconds"}
ALWAYS |= {"tokens_per_second_per_gpu", "blocks_per_second", "tflops_per_second_per_gpu"}
ALWAYS |= {f"{part}_seconds" for part in PARTS}
OF_A_GPU = {"mfu", "mfu_causal", "peak_memory_bytes", "gpu_memory_bytes", "gpu_utilization", "gpu_power_watts"}


@pytest.fixture(scope="module")
def whole_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("log") / "run"
    done = train("2 ranks", sample_store, run_dir, *FLAGS)
    (run_dir.parent / "stderr").write_text(done.stderr)
    return run_dir


def test_a_record_says_all_that_is_known(whole_run: Path) -> None:
    found = records(whole_run)
    assert all(set(record) >= ALWAYS for record in found)
    assert not set(found[-1]) & {*OF_A_GPU, "energy_joules", "loss_scale"}, "there is no GPU and no fp16"
    for name in ("overall", "smoothed"):
        has_speed = [f"{name}_tokens_per_second_per_gpu" in record for record in found]
        assert has_speed == [False] + [True] * (NUM_STEPS - 1)
    for record in found:
        tokens_per_second = 2 * record["tokens_per_second_per_gpu"]
        assert record["blocks_per_second"] * BLOCK_LENGTH == pytest.approx(tokens_per_second)
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
    times = [record["logged_at"] for record in records(whole_run, "logged_at")]
    assert times == sorted(times)
    assert len(times) == NUM_STEPS + 2 + 1 + len(events(whole_run, "start", "save", "summary"))


@pytest.mark.guarantee("The parts of the time sum to the whole.")
def test_the_parts_of_the_time_sum_to_the_whole(whole_run: Path) -> None:
    found = records(whole_run)
    for record in found:
        assert record["interval_seconds"] == pytest.approx(sum(record[f"{part}_seconds"] for part in PARTS), abs=1e-9)
        assert record["forward_backward_seconds"] > 0
        assert record["optimizer_seconds"] > 0
    saving, evaluating = (
        [record["step"] for record in found if record[f"{part}_seconds"] > 0] for part in ("save", "evaluation")
    )
    assert evaluating == [4], "the evaluation of step 3 is told with the next record, and of step 6 in the summary"
    assert saving[0] == 4, "and so is the save; what follows when it is written can be later"
    (summary,) = events(whole_run, "summary")
    assert summary["total_seconds"] == pytest.approx(sum(summary[f"{part}_seconds"] for part in PARTS), abs=1e-9)
    assert summary["total_seconds"] > sum(record["interval_seconds"] for record in found), "and what came after"
    evaluations = [*records(whole_run, "eval_loss"), *records(whole_run, "test_loss")]
    runtimes = [record.get("eval_runtime", record.get("test_runtime", 0)) for record in evaluations]
    assert len(runtimes) == 3
    assert summary["evaluation_seconds"] >= sum(runtimes) - 1e-3, "the test after the last step, too"
    between = evaluations[-1]["logged_at"] - records(whole_run, "logged_at")[0]["logged_at"]
    assert summary["total_seconds"] > between - 0.01, "from before the first step until after the last evaluation"
    last = found[-1]
    assert summary["overall_tokens_per_second_per_gpu"] == last["overall_tokens_per_second_per_gpu"]
    assert summary["num_steps"] == NUM_STEPS
    assert summary["peak_host_memory_bytes"] >= max(record["host_memory_bytes"] for record in found)


def test_the_smoothed_loss_is_the_mean_of_the_last_ones(whole_run: Path) -> None:
    losses = [record["loss"] for record in records(whole_run)]
    for number, record in enumerate(records(whole_run), start=1):
        weights = [0.98 ** (number - step) for step in range(1, number + 1)]
        mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=False)) / sum(weights)
        assert record["smoothed_loss"] == pytest.approx(mean)


def test_starts_and_saves_are_events(whole_run: Path) -> None:
    assert events(whole_run, "start") == [
        {"step": 0, "event": "start", "resumed_from": None, "num_processes": 2, "num_parameters": 542_880}
    ]
    saves = events(whole_run, "save")
    assert [(event["step"], event["checkpoint"]) for event in saves] == [(3, "checkpoint-3"), (6, "checkpoint-6")]
    for event in saves:
        assert event["num_bytes"] == read_complete(whole_run / event["checkpoint"])["num_bytes"]
        assert event["seconds"] > 0


@pytest.mark.guarantee("A checkpoint and an export take what was planned.")
def test_a_checkpoint_takes_what_was_planned(whole_run: Path, sample_store: Path) -> None:
    words = [str(word) for word in training_flags(sample_store, whole_run, *FLAGS)]
    arguments = parse_pretrain_arguments("", words)
    machine = replace(this_machine(), num_processes=2, num_local_processes=2)
    planned = make_plan(arguments, machine, local_mixture(arguments)).disk
    files = [
        *(whole_run / "checkpoint-6").glob("*.safetensors"),
        *(whole_run / "checkpoint-6").rglob("*optim_states.pt"),
    ]
    assert planned.checkpoint_bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.01)
    assert planned.export_bytes == pytest.approx((whole_run / "model/model.safetensors").stat().st_size, rel=0.01)
    assert planned.num_checkpoints == len(list(whole_run.glob("checkpoint-*")))


@pytest.mark.guarantee("No metric makes a micro step wait for a GPU.")
def test_no_figure_makes_a_micro_step_wait_for_a_gpu(sample_store: Path, tmp_path: Path) -> None:
    flags = ["--per_device_train_batch_size", 1, "--max_steps", 2, "--export", "false", "--save_strategy", "no"]
    options = {"script": "tests/programs/drivers/counting_run.py", "env": {"SYNCHRONIZATIONS": str(tmp_path / "found")}}
    train("1 rank", sample_store, tmp_path / "run", *flags, "--eval_strategy", "no", **options)
    assert "loss/sport" in records(tmp_path / "run")[-1], "figures by source are among them"
    assert json.loads((tmp_path / "found").read_text()) == {"micro_steps": 2 * BLOCKS_PER_STEP, "synchronizations": 0}


def test_one_process_speaks_and_says_each_step_once(whole_run: Path) -> None:
    lines = (whole_run.parent / "stderr").read_text().splitlines()
    said = [line.split("  ")[0] for line in lines if line.startswith("step ") and "  loss " in line and " left" in line]
    assert said == [f"step {step}/{NUM_STEPS}" for step in range(1, NUM_STEPS + 1)]
    for word in ("time: 6 steps in ", "speed: ", "memory: "):
        assert sum(line.startswith(word) for line in lines) == 1


# The quick one is as if it was killed at its end, with more in its curves that is trained again.
@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.guarantee("A killed run has each step once in its curves.")
def test_a_killed_run_tells_each_step_once(
    is_killed: bool, whole_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    """The curves of the killed run go on until step 5, or to the end, its checkpoint is of step 3."""
    run_dir = tmp_path / "run"
    if is_killed:
        env = {"CRASHES": json.dumps([[0, 6, "SIGKILL"]])}
        try_to_train("2 ranks", sample_store, run_dir, *FLAGS, script="tests/faults/drivers/crashing_run.py", env=env)
    else:
        shutil.copytree(whole_run, run_dir)
        for name in ("checkpoint-6", "model"):
            shutil.rmtree(run_dir / name)
    assert curves(run_dir)["train/loss"] == list(range(1, NUM_STEPS if is_killed else NUM_STEPS + 1))
    train("2 ranks", sample_store, run_dir, *FLAGS)
    assert first_difference(whole_run, run_dir) is None
    told, expected = curves(run_dir), curves(whole_run)
    for name in ("overall", "smoothed"):  # which each start has from its second record on
        speed = f"train/{name}_tokens_per_second_per_gpu"
        assert (told.pop(speed), expected.pop(speed)) == ([2, 3, 5, 6], [2, 3, 4, 5, 6])
    assert told == expected
    assert curves(run_dir)["train/smoothed_loss"] == list(range(1, NUM_STEPS + 1))
    assert curves(run_dir)["eval/loss"] == [3, 6]
    assert curves(run_dir)["test/loss"] == [6]
    assert [event["step"] for event in events(run_dir, "start")] == [0, 3]


def test_a_line_has_all_its_steps_at_the_end_and_across_a_resume(
    whole_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    flags = ["--logging_steps", 4, "--eval_strategy", "no", "--export", "false", "--report_to", "none"]
    train("2 ranks", sample_store, tmp_path / "run", *flags, "--save_steps", 3)
    losses = [record["loss"] for record in records(whole_run)]
    told = records(tmp_path / "run")
    assert [record["step"] for record in told] == [4, 6]
    assert [record["loss"] for record in told] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 2])
    words = [*flags, "--save_strategy", "no", "--resume", tmp_path / "run/checkpoint-3"]
    done = train("2 ranks", sample_store, tmp_path / "resumed", *words)
    assert figures(tmp_path / "resumed") == figures(tmp_path / "run")
    assert "(README.md, metrics.jsonl)" in done.stderr, "neither curves nor checkpoints were asked for"


def curves(run_dir: Path) -> dict[str, list[int]]:
    """The steps of each curve in TensorBoard."""
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [point.step for point in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_stopped_run_has_its_summary(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("1 rank", sample_store, tmp_path / "run", *FLAGS, "--max_hours", "1e-9")
    assert [event["event"] for event in events(tmp_path / "run", "stop", "save", "summary")] == [
        "stop",
        "save",
        "summary",
    ]
    assert "time: 1 step in " in done.stderr


def test_a_run_that_goes_on_logs_and_saves_as_its_flags_say_now(
    whole_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoint-6")
    flags = ["--eval_strategy", "no", "--export", "false", "--save_total_limit", 3]
    train("1 rank", sample_store, run_dir, *flags, "--save_steps", 2, "--logging_steps", 2)
    assert [record["step"] for record in records(run_dir)] == [1, 2, 3, 4, 6]
    assert {path.name for path in run_dir.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (3, 4, 6)}
