"""A run of phases is the runs that it replaces: the same weights to the bit, whenever it is killed."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.conftest import Done, assert_one_error
from tests.programs.launching import (
    BLOCKS_PER_STEP,
    events,
    figures,
    records,
    small_store,
    train,
    try_to_train,
)
from tests.rounding import assert_same_training

pytestmark = pytest.mark.launch

STEPS, BORDER = 10, 6
FLAGS = ["--eval_strategy", "no", "--logging_steps", 1, "--save_steps", STEPS]
FLAGS += ["--per_device_train_batch_size", BLOCKS_PER_STEP]
NOT_GIVEN = None  # --dataset, which excludes phases


@pytest.fixture(scope="module")
def stores(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two block stores of other texts, the second small enough to be read more than once."""
    return {"news": sample_store, "better": small_store(tmp_path_factory.mktemp("better"), num_texts=30)}


def mixture(stores: dict[str, Path], **shares: float) -> list[str]:
    return [f"{name}={stores[name]}:{share}" for name, share in shares.items()]


@pytest.fixture(scope="module")
def recipe(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of cosine on both stores, four of linear decay to 0 on other shares of them."""
    path = tmp_path_factory.mktemp("recipe") / "phases.yaml"
    path.write_text(f"""\
max_steps: {STEPS}
phases:
  - name: pretrain
    dataset: {json.dumps(mixture(stores, news=0.7, better=0.3))}
    share: 0.6
  - name: anneal
    dataset: {json.dumps(mixture(stores, better=0.6, news=0.4))}
    share: 0.4
    lr_scheduler_type: linear
""")
    return path


DRIVER = "tests/programs/pretrain/faulty_run.py"


def phased(ranks: str, recipe: Path, run_dir: Path, *flags: object, **env: str) -> Done:
    words = [*FLAGS, "--recipe", recipe, "--max_steps", STEPS, *flags]
    return try_to_train(ranks, NOT_GIVEN, run_dir, *words, script=DRIVER, env=env)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both phases that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = phased("1 rank", recipe, run_dir)
    assert done.returncode == 0, done.output
    return run_dir


@pytest.fixture(scope="module")
def by_hand(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first phase as a separate run."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    data = ["--dataset", *mixture(stores, news=0.7, better=0.3)]
    train("1 rank", NOT_GIVEN, run_dir, *FLAGS, *data, "--max_steps", BORDER)
    return run_dir


def second_phase(by_hand: Path, stores: dict[str, Path], run_dir: Path, *flags: object, **env: str) -> None:
    """Resume the run of the first phase with the data and the schedule of the second."""
    words = ["--dataset", *mixture(stores, better=0.6, news=0.4), "--allow_changed", "data", "schedule"]
    rate = records(by_hand)[-1]["learning_rate"]
    words += ["--lr_scheduler_type", "linear", "--learning_rate", repr(rate), "--min_learning_rate", 0]
    words += ["--warmup_steps", BORDER, "--max_steps", STEPS, "--resume", by_hand / f"checkpoint-{BORDER}"]
    train("1 rank", NOT_GIVEN, run_dir, *FLAGS, *words, *flags, script=DRIVER, env=env)


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model/model.safetensors").read_bytes()


@pytest.mark.guarantee("A run of phases equals the runs by hand that it replaces, bit by bit.")
def test_two_phases_are_two_runs_by_hand(by_hand: Path, stores: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    second_phase(by_hand, stores, tmp_path / "second")
    assert figures(tmp_path / "second") == figures(whole)
    assert weights(tmp_path / "second") == weights(whole)
    rates = [record["learning_rate"] for record in records(whole)]
    assert rates[BORDER - 1 :] == [pytest.approx(1e-3 * left / 4) for left in (4, 3, 2, 1, 0)]


def test_what_a_run_of_phases_leaves(whole: Path, stores: dict[str, Path]) -> None:
    assert [record["phase"] for record in records(whole)] == ["pretrain"] * BORDER + ["anneal"] * (STEPS - BORDER)
    assert [(event["step"], event["phase"]) for event in events(whole, "phase")] == [(BORDER, "anneal")]
    assert (whole / f"checkpoint-{BORDER}").is_dir(), "the end of a phase is kept"
    record = json.loads((whole / "run.json").read_text())
    assert [phase["name"] for phase in record["arguments"]["phases"]] == ["pretrain", "anneal"]
    assert [store["phase"] for store in record["identity"]["data"]] == ["pretrain"] * 2 + ["anneal"] * 2
    card = (whole / "README.md").read_text()
    assert "phase anneal: steps 7 to 10" in card
    assert "This is step" not in card
    last = records(whole)[-1]
    read = {name: last[f"epoch/{name}"] * num_blocks(store) for name, store in stores.items()}
    assert read["better"] == pytest.approx((0.3 * 6 + 0.6 * 4) * BLOCKS_PER_STEP, abs=1)
    assert sum(read.values()) == pytest.approx(STEPS * BLOCKS_PER_STEP)


def num_blocks(store: Path) -> int:
    return json.loads((store / "manifest.json").read_text())["splits"]["train"]["num_blocks"]


@pytest.mark.guarantee("A run that is killed in any of its phases equals an uninterrupted one, bit by bit.")
@pytest.mark.parametrize("kills", [[BORDER + 1], pytest.param([BORDER, 9], marks=pytest.mark.long)], ids=str)
def test_a_run_killed_in_each_phase_is_one_that_was_not(
    kills: list[int], recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """The quick one was killed in the second phase, and repeats the border between both."""
    run_dir = tmp_path / "run"
    for step in kills:
        assert phased("1 rank", recipe, run_dir, "--save_steps", 2, KILL_AT=str(step)).returncode != 0
        assert len(records(run_dir)) >= step - 1
        if step == BORDER + 1:
            shutil.rmtree(run_dir / f"checkpoint-{BORDER}", ignore_errors=True)
    done = phased("1 rank", recipe, run_dir, "--save_steps", 2)
    assert done.returncode == 0, done.output
    assert figures(run_dir) == figures(whole)
    assert weights(run_dir) == weights(whole)
    assert [record["phase"] for record in records(run_dir)] == [record["phase"] for record in records(whole)]
    assert [event["step"] for event in events(run_dir, "phase")] == [BORDER]


# Of one phase test_two_processes_train_on_a_mixture_like_one, of a resume with others
# test_a_run_goes_on_with_any_number_of_processes holds it.
@pytest.mark.long
def test_another_number_of_processes_reads_the_same_blocks(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = ["--resume", whole / f"checkpoint-{BORDER}", "--per_device_train_batch_size", 2]
    done = phased("2 ranks", recipe, run_dir, *words)
    assert done.returncode == 0, done.output
    assert_same_training(figures(run_dir), figures(whole))
    ours, theirs = records(run_dir)[-1], records(whole)[-1]
    names = [name for name in theirs if name.startswith(("tokens/", "epoch"))]
    assert len(names) == 5
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


# A rollback without phases is held by tests/faults/test_spikes.py, the blocks of phases by the tests above.
@pytest.mark.long
def test_a_rollback_after_a_border_skips_what_a_run_by_hand_skips(
    by_hand: Path, stores: dict[str, Path], recipe: Path, whole: Path, tmp_path: Path
) -> None:
    rollback = ["--on_spike", "rollback", "--save_steps", 1]
    done = phased("1 rank", recipe, tmp_path / "phases", *rollback, SPIKE_AT="8")
    assert done.returncode == 0, done.output
    assert "rolled back" in done.stderr
    second_phase(by_hand, stores, tmp_path / "second", *rollback, SPIKE_AT="2")
    assert figures(tmp_path / "phases") == figures(tmp_path / "second")
    assert weights(tmp_path / "phases") == weights(tmp_path / "second") != weights(whole)

    resumed = tmp_path / "resumed"
    done = phased("1 rank", recipe, resumed, "--resume", tmp_path / "phases/checkpoint-9")
    assert done.returncode == 0, done.output
    assert weights(resumed) == weights(tmp_path / "phases"), "skipped blocks are read after all"


def test_a_schedule_longer_than_the_run_is_the_same_for_a_longer_run(stores: dict[str, Path], tmp_path: Path) -> None:
    flags = [*FLAGS, "--export", "false", "--schedule_steps", 8, "--warmup_steps", 0.25]
    short, longer = (tmp_path / name for name in ("short", "longer"))
    train("1 rank", stores["news"], short, *flags, "--max_steps", 6)
    done = train("1 rank", stores["news"], longer, *flags, "--resume", short / "checkpoint-6", "--max_steps", STEPS)
    assert "the schedule changes" not in done.stderr
    rates = [record["learning_rate"] for record in records(longer)]
    cosine = [1e-3 + 9e-3 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]
    assert rates == [pytest.approx(rate) for rate in (5e-3, *cosine, 1e-3, 1e-3)]
    assert figures(longer)[:6] == figures(short)


def test_a_phase_without_tokens_is_refused_in_one_line(recipe: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    text = recipe.read_text().replace("share: 0.6", "share: 0.98").replace("share: 0.4", "share: 0.02")
    bad, run_dir = tmp_path / "bad.yaml", tmp_path / "run"
    bad.write_text(text)
    done = phased("1 rank", bad, run_dir)
    assert_one_error(done, "--phases: anneal: its share of 0.02 of 10 steps is less than one step; use a larger share")
    assert not run_dir.exists()
    bad.write_text(text.replace("share: 0.02", "share: 0").replace("linear", "linea\n    min_lr: 0"))
    done = phased("1 rank", bad, run_dir)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "bad.yaml" in line]
    assert [line.partition("phases: ")[2] for line in lines] == [
        "phase anneal: share 0: must be in (0, 1]",
        "phase anneal: lr_scheduler_type: 'linea' is not one of cosine, wsd, linear, constant (did you mean linear?)",
        "phase anneal: min_lr: is not a field of a phase (did you mean min_learning_rate?)",
    ]
    assert all("bad.yaml:6: " in line for line in lines)


def test_other_phases_need_permission(recipe: Path, stores: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text().replace("share: 0.6", "share: 0.8").replace("share: 0.4", "share: 0.2"))
    words = ["--resume", whole / f"checkpoint-{STEPS}", "--allow_changed", "schedule", "--max_steps", 20]
    done = phased("1 rank", other, tmp_path / "run", *words)
    assert_one_error(done, "these phases give step 10 other data than it was trained on", "pass --allow_changed data")
