"""--eval_blocks bounds the evaluations during a training and changes nothing else."""

import re
import shutil
from pathlib import Path

import pytest

from pretraining.runs.compare import TRAINING_METRICS
from tests.conftest import TINY_RUN, python
from tests.programs.launching import BLOCK_LENGTH, NUM_STEPS, events, records, run_forked, train

pytestmark = pytest.mark.launch

NUM_CHOSEN = 6
FLAGS = ["--eval_steps", 3, "--save_strategy", "no", "--export", "false"]


@pytest.fixture(scope="module")
def runs(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training with all of validation, and with a part of it in one process and in two."""
    folder = tmp_path_factory.mktemp("evaluation")
    part = ["--eval_blocks", NUM_CHOSEN]
    train("1 rank", sample_store, folder / "whole", *FLAGS)
    saved = ["--save_strategy", "steps", "--save_steps", 3]
    done = train("1 rank", sample_store, folder / "part", *FLAGS, *part, *saved)
    (folder / "stderr").write_text(done.stderr)
    train("2 ranks", sample_store, folder / "shared", *FLAGS, *part, "--per_device_eval_batch_size", 3)
    return {name: folder / name for name in ("whole", "part", "shared")}


def evaluations(run_dir: Path) -> list[dict]:
    return records(run_dir, "eval_loss")


@pytest.mark.guarantee("--eval_blocks changes neither the training nor the final validation and test.")
def test_a_bound_changes_only_the_evaluations_during_the_training(runs: dict[str, Path]) -> None:
    trained = {
        name: [{metric: record[metric] for metric in TRAINING_METRICS} for record in records(runs[name])]
        for name in ("whole", "part")
    }
    assert trained["part"] == trained["whole"]
    assert [record["step"] for record in evaluations(runs["whole"])] == [3, NUM_STEPS]
    assert [record["step"] for record in evaluations(runs["part"])] == [3, NUM_STEPS, NUM_STEPS]
    final, expected = evaluations(runs["part"])[-1], evaluations(runs["whole"])[-1]
    assert "eval_blocks" not in final
    for metric in ("eval_loss", "eval_accuracy", "eval_num_tokens", "eval_bits_per_byte"):
        assert final[metric] == expected[metric]
    (test,), (expected,) = (records(runs[name], "test_loss") for name in ("part", "whole"))
    assert test["test_loss"] == expected["test_loss"]


def test_a_part_is_marked_and_the_same_for_any_number_of_processes(runs: dict[str, Path]) -> None:
    for name in ("part", "shared"):
        marked = evaluations(runs[name])[:-1]
        assert [record["eval_blocks"] for record in marked] == [NUM_CHOSEN] * 2
        assert [record["eval_num_tokens"] for record in marked] == [NUM_CHOSEN * (BLOCK_LENGTH - 1)] * 2
        sources = [{key for key in record if key.startswith("eval_num_tokens/")} for record in marked]
        assert sources[0] == sources[1]
        for record in marked:
            in_sources = sum(record[key] for key in sources[0])
            assert in_sources == record["eval_num_tokens"], "what each source has of the part is recorded"
    losses = [[record["eval_loss"] for record in evaluations(runs[name])] for name in ("part", "shared")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    log = (runs["part"].parent / "stderr").read_text()
    assert re.search(rf"step 3/6  validation, {NUM_CHOSEN} blocks +loss ", log)
    assert re.search(r"step 6/6  validation +loss ", log)


def test_a_start_and_a_plan_say_that_evaluations_would_take_most_of_the_time(
    sample_store: Path, tmp_path: Path
) -> None:
    """Each reads most of validation, for 8 blocks that are trained on; in the warning and in metrics.jsonl."""
    often = ["--eval_steps", 1, "--max_steps", 4, "--eval_blocks", 30]
    done = train("1 rank", sample_store, tmp_path / "run", "--save_strategy", "no", "--export", "false", *often)
    (line,) = [line for line in done.stderr.splitlines() if "evaluation will take about" in line]
    assert re.search(r"warning: --eval_steps 1: evaluation will take about \d\d % of the time \(4 x 30 blocks", line)
    words = [*TINY_RUN, "--dataset", sample_store, "--global_batch_blocks", 8, *often, "--dry_run"]
    plan = run_forked(*python("pretrain.py", *words))
    assert plan.returncode == 0, plan.output
    assert "--eval_steps 1: evaluation will take about" in " ".join(plan.stdout.split())
    assert re.search(r"evaluation, of the time +\d\d\.\d%", plan.stdout)
    (summary,) = events(tmp_path / "run", "summary")
    assert summary["evaluation_seconds"] > 0


def test_a_run_that_evaluates_a_part_warns_of_nothing(runs: dict[str, Path]) -> None:
    log = (runs["part"].parent / "stderr").read_text()
    assert [line for line in log.splitlines() if "warning" in line] == []


def test_a_resumed_run_repeats_the_whole_validation_only(
    runs: dict[str, Path], sample_store: Path, tmp_path: Path
) -> None:
    """A run that had ended is started again: the part was evaluated before its last checkpoint."""
    run_dir = shutil.copytree(runs["part"], tmp_path / "run")
    flags = ["--eval_steps", 3, "--eval_blocks", NUM_CHOSEN, "--save_steps", 3, "--export", "false"]
    train("1 rank", sample_store, run_dir, *flags)
    assert [event["step"] for event in events(run_dir, "start")] == [0, NUM_STEPS]
    found = [(record["step"], record.get("eval_blocks")) for record in evaluations(run_dir)]
    assert found == [(3, NUM_CHOSEN), (NUM_STEPS, NUM_CHOSEN), (NUM_STEPS, None)]
    assert len(records(run_dir, "test_loss")) == 1
