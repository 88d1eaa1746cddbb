"""--allow_changed data: sums by source keep their names, whatever the number of sources was before and is now."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretraining.runs.checksums import record_file, write_manifest
from pretraining.training.metrics.step_metrics import EARLIER_NAMES
from tests.conftest import Done
from tests.programs.launching import BLOCK_LENGTH, BLOCKS_PER_STEP, figures, records, small_store, train

pytestmark = pytest.mark.launch

FLAGS = ["--lr_scheduler_type", "constant", "--eval_strategy", "no", "--export", "false", "--logging_steps", 1]
FLAGS += ["--per_device_train_batch_size", BLOCKS_PER_STEP]
TOKENS_PER_STEP = BLOCKS_PER_STEP * (BLOCK_LENGTH - 1)
FIVE = ("business", "local", "science", "sport", "world")


@pytest.fixture(scope="module")
def lone_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of one source, which has no name in the log."""
    return small_store(tmp_path_factory.mktemp("lone"), num_texts=40)


def start(run_dir: Path, num_steps: int, *datasets: object, **options: Any) -> Done:
    allowed = options.pop("allowed", ["--allow_changed", "data"])
    words = ["--max_steps", num_steps, "--save_steps", num_steps, "--dataset", *datasets, *allowed]
    return train("1 rank", "unused", run_dir, *FLAGS, *words)


def tokens(run_dir: Path) -> dict[str, int]:
    last = records(run_dir)[-1]
    return {name.removeprefix("tokens/"): count for name, count in last.items() if name.startswith("tokens/")}


def num_blocks(store: Path) -> int:
    return json.loads((store / "manifest.json").read_text())["splits"]["train"]["num_blocks"]


@pytest.mark.guarantee("Sums by source are right when the data change.")
def test_tokens_and_epochs_are_those_of_each_source(sample_store: Path, lone_store: Path, tmp_path: Path) -> None:
    """From 1 source to 5, to 1, to 2, to 2 others, and a resume on the same data at the end."""
    run_dir = tmp_path / "run"
    start(run_dir, 2, lone_store, allowed=[])
    assert tokens(run_dir) == {}
    start(run_dir, 4, sample_store)
    of_five = tokens(run_dir)
    assert set(of_five) == set(FIVE)
    assert sum(of_five.values()) == 2 * TOKENS_PER_STEP
    assert records(run_dir)[-1]["epoch"] == pytest.approx(2 * BLOCKS_PER_STEP / num_blocks(sample_store))

    start(run_dir, 5, lone_store)
    assert tokens(run_dir) == {}
    start(run_dir, 7, f"news={sample_store}:0.75", f"wiki={lone_store}:0.25")
    mixed = tokens(run_dir)
    assert {name: mixed[name] for name in FIVE} == of_five, "they were not read since"
    assert mixed["news"] + mixed["wiki"] == 2 * TOKENS_PER_STEP
    assert mixed["news"] == 3 * mixed["wiki"]
    last = records(run_dir)[-1]
    assert last["epoch/news"] == pytest.approx((2 + 2 * 0.75) * BLOCKS_PER_STEP / num_blocks(sample_store))
    assert last["epoch/wiki"] == pytest.approx((3 + 2 * 0.25) * BLOCKS_PER_STEP / num_blocks(lone_store))

    others = [f"books={lone_store}:0.5", f"news={sample_store}:0.5"]
    start(run_dir, 9, *others)
    done = start(run_dir, 10, *others, allowed=[])
    assert "--allow_changed" not in done.stderr, "nothing was changed in this start"
    found = tokens(run_dir)
    assert (found["wiki"], found["books"] + found["news"]) == (mixed["wiki"], mixed["news"] + 3 * TOKENS_PER_STEP)
    assert found["books"] == pytest.approx(1.5 * TOKENS_PER_STEP, abs=TOKENS_PER_STEP / 8)
    read = last["epoch/wiki"] * num_blocks(lone_store) + 1.5 * BLOCKS_PER_STEP
    assert records(run_dir)[-1]["epoch/books"] == pytest.approx(read / num_blocks(lone_store), abs=0.02)


def without_names(checkpoint: Path) -> None:
    """Make a checkpoint as earlier versions wrote it: sums as lists, callbacks under their earlier names."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    kept = state["stateful_callbacks"]
    for name in ("tokens_by_source", "interval_sums"):
        kept["StepMetrics"]["attributes"][name] = list(kept["StepMetrics"]["attributes"][name].values())
    for name in ("blocks_by_store", "order"):
        del kept["AnomalyCallback"]["attributes"][name]
    state["stateful_callbacks"] = {EARLIER_NAMES.get(name, name): value for name, value in kept.items()}
    assert {"StepWatch", "FaultHandler", "Stopping"} <= set(state["stateful_callbacks"])
    path.write_text(json.dumps(state))
    content = json.loads((checkpoint / "complete.json").read_text())
    files = [record_file(checkpoint, checkpoint / file["path"]) for file in content["files"]]
    write_manifest(checkpoint, files, step=content["step"], num_processes=content["num_processes"])


def test_checkpoints_that_saved_no_names(sample_store: Path, lone_store: Path, tmp_path: Path) -> None:
    run_dir, mixture = tmp_path / "run", [f"news={sample_store}:0.75", f"wiki={lone_store}:0.25"]
    start(run_dir, 2, *mixture, allowed=[])
    without_names(run_dir / "checkpoint-2")
    start(run_dir, 4, *mixture, allowed=[])
    assert tokens(run_dir) == {"news": 3 * TOKENS_PER_STEP, "wiki": TOKENS_PER_STEP}
    assert records(run_dir)[-1]["epoch/wiki"] == pytest.approx(BLOCKS_PER_STEP / num_blocks(lone_store))


@pytest.mark.long  # held by the test above and, with names, by test_tokens_and_epochs_are_those_of_each_source
def test_other_data_after_a_checkpoint_that_saved_no_names(
    sample_store: Path, lone_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    start(run_dir, 4, f"news={sample_store}:0.75", f"wiki={lone_store}:0.25", allowed=[])
    without_names(run_dir / "checkpoint-4")
    killed = shutil.copytree(run_dir, tmp_path / "killed", symlinks=True)
    done = start(run_dir, 6, f"books={sample_store}:0.5", f"code={lone_store}:0.5")
    assert tokens(run_dir) == {"books": TOKENS_PER_STEP, "code": TOKENS_PER_STEP}
    assert records(run_dir)[-1]["epoch/code"] == pytest.approx(BLOCKS_PER_STEP / num_blocks(lone_store))
    lines = [line for line in done.stderr.splitlines() if "no sources by name" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: --allow_changed data: ")
    # A start that is killed before its first save has written run.json.
    shutil.copy(run_dir / "run.json", killed / "run.json")
    start(killed, 6, f"books={sample_store}:0.5", f"code={lone_store}:0.5")
    assert figures(killed) == figures(run_dir)
