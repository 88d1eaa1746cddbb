"""A run resumes with other processes, with or without offload, in another precision or stage: it is the same run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pretraining.generation.load_model import load_model
from pretraining.runs.export.from_checkpoint import export_checkpoint
from pretraining.runs.model_source import find_model
from pretraining.runs.untrusted import load_pickle
from tests.conftest import PROJECT_DIR, TINY_MODEL
from tests.programs.launching import GROUPS, figures, group_norms, records, train
from tests.programs.shards import assert_equal_to_the_bit
from tests.rounding import assert_same_training, norm_rounding
from tools import verify

pytestmark = pytest.mark.launch

STEPS = 6
# 12 blocks a step, for 1, 2 and 3 processes. Three of them divide few of the shapes: there is padding everywhere.
FLAGS = [
    "--max_steps",
    STEPS,
    "--save_steps",
    2,
    "--save_total_limit",
    9,
    "--eval_strategy",
    "no",
    "--global_batch_tokens",
    12 * 64,
    "--export",
    "false",
]
FLAGS += ["--model_overrides", *TINY_MODEL, "tie_word_embeddings=true"]
# What assembles the state is that of the quick one. DeepSpeed itself loads below stage 3 what cannot be divided alone.
MORE_STAGES = [("zero1", "bf16", False), ("zero1", "fp32", True), ("zero2", "bf16", True), ("zero2", "fp32", False)]
MORE_STAGES += [("zero1_offload_optimizer", "bf16", True), ("zero2_offload_optimizer", "fp32", True)]


@pytest.fixture(scope="module")
def never_stopped(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, nothing offloaded."""
    run_dir = tmp_path_factory.mktemp("elastic") / "run"
    train("2 ranks", sample_store, run_dir, *FLAGS)
    return run_dir


@pytest.fixture(scope="module")
def offload(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Optimizer and parameters in host memory, in sub-groups so small that the matrices fall into several."""
    config = json.loads((PROJECT_DIR / "ds_config_offload.json").read_text())
    config["zero_optimization"]["sub_group_size"] = 3000
    path = tmp_path_factory.mktemp("offload") / "ds.json"
    path.write_text(json.dumps(config))
    return ["--deepspeed", path]


def go_on(ranks: str, store: Path, run_dir: Path, checkpoint: Path, *flags: object, **env: str) -> str:
    """Resume, and see that everything was restored to the bit; what the run said."""
    run_dir.parent.mkdir(exist_ok=True)
    environment = {"KEPT": str(run_dir.parent), **env}
    words = [*FLAGS, *flags, "--resume", checkpoint]
    done = train(ranks, store, run_dir, *words, script="tests/programs/drivers/elastic_run.py", env=environment)
    for restored in run_dir.parent.glob("restored-*"):
        assert_equal_to_the_bit(restored, checkpoint)
    return done.stderr


@pytest.mark.guarantee(
    "A run resumes in 1, 2 or 3 processes, with or without offload: all state bit by bit, losses to 1e-4."
)
def test_a_run_goes_on_with_any_number_of_processes(
    never_stopped: Path, offload: list[object], sample_store: Path, tmp_path: Path
) -> None:
    """2 -> 3 -> 1 processes, there and back between offload and none; the first goes back to its start, too.

    Losses are those of a run that never stopped, but for the order of the sums of a step.
    """
    three, one = (tmp_path / name / "run" for name in ("three", "one"))
    rollback = ["--on_spike", "rollback"]
    said = go_on("3 ranks", sample_store, three, never_stopped / "checkpoint-2", *offload, *rollback, SPIKE_AT="2")
    assert f"resuming from {never_stopped / 'checkpoint-2'} (saved by 2 processes, now 3)" in said
    assert f"step 4: rolled back to {never_stopped / 'checkpoint-2'}" in said
    assert (tmp_path / "three/restored-2").is_dir(), "it was not loaded again"
    said = go_on("1 rank", sample_store, one, three / "checkpoint-4")
    assert f"resuming from {three / 'checkpoint-4'} (saved by 3 processes, now 1)" in said
    for run_dir in (one, three):
        assert [record["step"] for record in records(run_dir)] == list(range(1, STEPS + 1))
        assert_same_training(figures(run_dir), figures(never_stopped), step_tokens=12 * 64)
        # The head is tied to the embeddings.
        ours, theirs = (group_norms(folder, GROUPS[:-1]) for folder in (run_dir, never_stopped))
        np.testing.assert_allclose(ours, theirs, rtol=norm_rounding(step_tokens=12 * 64))
        # ZeRO-3 sums those of an offloaded optimizer in fp32.
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), [norm for _, norm in figures(run_dir)], rtol=1e-6)
        assert records(run_dir)[-1]["tokens/world"] == records(never_stopped)[-1]["tokens/world"]
    seeds = [path.read_text() for path in tmp_path.glob("*/seed-*")]
    assert len(set(seeds)) == len(seeds) == 1 + 3, "a process draws the numbers of another"
    for run_dir in (one, three):
        assert_exports_its_weights(run_dir / f"checkpoint-{STEPS}")


def of_stage(name: str) -> list[object]:
    return ["--deepspeed", PROJECT_DIR / f"ds_config_{name}.json"]


@pytest.mark.guarantee(
    "A run resumes under ZeRO-1, 2 or 3, whichever saved it, in another number of processes, with or without offload: "
    "all state bit by bit, losses to 1e-4."
)
def test_a_run_goes_on_in_any_stage(never_stopped: Path, sample_store: Path, tmp_path: Path) -> None:
    """ZeRO-3 -> 1 -> 2 with offload -> 3 in 2, 3, 1 and 2 processes; what ZeRO-3 loads at the end is what it saved."""
    first, second, third = (tmp_path / name / "run" for name in ("first", "second", "third"))
    rollback = ["--on_spike", "rollback"]
    start = never_stopped / "checkpoint-2"
    said = go_on("3 ranks", sample_store, first, start, *of_stage("zero1"), *rollback, SPIKE_AT="2")
    assert f"{start} (saved by 2 processes, now 3; saved with ZeRO-3, now ZeRO-1)" in said
    assert f"step 4: rolled back to {start}" in said
    assert (tmp_path / "first/restored-2").is_dir(), "it was not loaded again"
    zero2 = [*of_stage("zero2_offload_optimizer"), "--save_steps", 1]
    said = go_on("1 rank", sample_store, second, first / "checkpoint-4", *zero2)
    assert f"{first / 'checkpoint-4'} (saved by 3 processes, now 1)" in said
    said = go_on("2 ranks", sample_store, third, second / "checkpoint-5")
    assert "(saved by 1 process, now 2; saved with ZeRO-1 or ZeRO-2, now ZeRO-3)" in said
    for run_dir in (first, second, third):
        assert [record["step"] for record in records(run_dir)] == list(range(1, STEPS + 1))
        assert_same_training(figures(run_dir), figures(never_stopped), step_tokens=12 * 64)
        assert records(run_dir)[-1]["tokens/world"] == records(never_stopped)[-1]["tokens/world"]
    for run_dir in (first, second):
        assert_exports_its_weights(run_dir / f"checkpoint-{STEPS}")
        assert_generates_from_shards(run_dir / f"checkpoint-{STEPS}", tmp_path)
    verify.main([str(first)])


def assert_generates_from_shards(checkpoint: Path, folder: Path) -> None:
    """What is left when the file of weights is gone: they are read from the shards."""
    bare = folder / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*.safetensors", "complete.json", "run.json"))
    source = find_model(str(bare))
    assert "(ZeRO shards)" in source.description
    ours, theirs = load_model(source)[0].state_dict(), load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    shutil.rmtree(bare)


@pytest.mark.parametrize(
    ("stage", "precision", "divides"),
    [
        ("zero1", "bf16", True),
        *(pytest.param(*which, marks=pytest.mark.long) for which in MORE_STAGES),
    ],
)
@pytest.mark.guarantee("A run under ZeRO-1 or 2 that was stopped and resumed equals one that was not, bit by bit.")
def test_a_resume_in_the_same_stage_changes_nothing(
    stage: str, precision: str, divides: bool, sample_store: Path, tmp_path: Path
) -> None:
    """Assembled here, or loaded by DeepSpeed where the optimizer's state cannot be divided."""
    flags = [*of_stage(stage), "--bf16", str(precision == "bf16").lower(), "--max_steps", 4]
    whole, resumed = tmp_path / "whole/run", tmp_path / "resumed/run"
    train("2 ranks", sample_store, whole, *FLAGS, *flags)
    env = {} if divides else {"WHOLE": "1"}
    go_on("2 ranks", sample_store, resumed, whole / "checkpoint-2", *flags, **env)
    assert figures(resumed) == figures(whole)
    assert_equal_to_the_bit(resumed / "checkpoint-4", whole / "checkpoint-4")
    (engine,) = (resumed / "checkpoint-4").rglob("mp_rank_00_model_states.pt")
    assert load_pickle(engine, mmap=True)["module"] == {}, "the weights are saved twice"
    ours, theirs = (folder / "checkpoint-4/model.safetensors" for folder in (resumed, whole))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("offload", ["", "_offload_optimizer"])
@pytest.mark.parametrize("stage", ["zero1", "zero2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_stage_there_and_back(
    precision: str, stage: str, offload: str, sample_store: Path, tmp_path: Path
) -> None:
    """ZeRO-3 in two processes, another stage in four and in one, ZeRO-3 in three."""
    start, four, one, three = (tmp_path / name / "run" for name in ("start", "four", "one", "three"))
    flags = ["--bf16", str(precision == "bf16").lower(), "--max_steps", 8, "--per_device_train_batch_size", 1]
    train("2 ranks", sample_store, start, *FLAGS, *flags)
    go_on("4 ranks", sample_store, four, start / "checkpoint-2", *flags, *of_stage(stage + offload))
    go_on("1 rank", sample_store, one, four / "checkpoint-4", *flags, *of_stage(stage))
    go_on("3 ranks", sample_store, three, one / "checkpoint-6", *flags)


# What frees it is called before either way to load.
@pytest.mark.parametrize("stage", [[], pytest.param(of_stage("zero1"), marks=pytest.mark.long)])
@pytest.mark.guarantee("A rollback and --load_best_model_at_end never hold two copies of the optimizer state.")
def test_the_state_is_freed_before_another_is_loaded(stage: list[object], sample_store: Path, tmp_path: Path) -> None:
    """The best checkpoint, here of the highest loss, is kept beyond --save_total_limit, and loaded at the end."""
    flags = [*FLAGS, *stage, "--on_spike", "rollback", "--eval_strategy", "steps", "--eval_steps", 2]
    flags += ["--load_best_model_at_end", "--metric_for_best_model", "loss", "--greater_is_better", "true"]
    flags += ["--save_total_limit", 1, "--max_steps", 6]
    script, env = "tests/programs/drivers/elastic_run.py", {"KEPT": str(tmp_path), "SPIKE_AT": "5"}
    train("1 rank", sample_store, tmp_path / "run", *flags, script=script, env=env)
    assert {folder.name for folder in tmp_path.glob("restored-*")} == {"restored-1", "restored-2"}
    losses = {record["step"]: record["eval_loss"] for record in records(tmp_path / "run", "eval_loss")}
    best = max(losses, key=losses.__getitem__)
    assert best < 6
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}


def assert_exports_its_weights(checkpoint: Path) -> None:
    """The shards of its processes, put together by one, are the weights that it has."""
    model_dir = checkpoint.with_name("exported")
    export_checkpoint(checkpoint, model_dir, dtype=torch.float32)
    exported, saved = (load_file(folder / "model.safetensors") for folder in (model_dir, checkpoint))
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in saved.items())


def test_the_master_weights_are_kept_when_the_precision_changes(
    never_stopped: Path, sample_store: Path, tmp_path: Path
) -> None:
    """fp32 in two processes to bf16 in one."""
    flags = ["--bf16", "true", "--max_steps", 4, "--allow_changed", "precision"]
    go_on("1 rank", sample_store, tmp_path / "one/run", never_stopped / "checkpoint-2", *flags)
