"""The comparison of two runs finds each thing that can differ, and nothing where nothing does."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pretraining.runs.compare import first_difference

Change = Callable[[list[dict]], object]


def write_run(run_dir: Path, records: list[dict], weights: bytes = b"weights") -> Path:
    (run_dir / "model").mkdir(parents=True)
    save_file({"head": np.frombuffer(weights, np.uint8)}, run_dir / "model/model.safetensors")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run_dir


def make_records() -> list[dict]:
    records: list[dict] = [{"step": step, "loss": 9.0 - step, "grad_norm": 0.5, "mfu": 0.4} for step in (1, 2, 3)]
    return [
        *records,
        {"step": 3, "eval_loss": 6.5, "eval_runtime": 1.5, "task/t/acc": 0.5},
        {"step": 3, "test_loss": 6.6},
    ]


def other_timings(records: list[dict]) -> None:
    records[0]["mfu"] = 0.1
    records[3] |= {"eval_runtime": 9.0, "task_seconds": 3.0}


@pytest.mark.parametrize(
    "change",
    [
        other_timings,
        lambda records: records.append(dict(records[4])),
        lambda records: records.insert(1, {"step": 1, "event": "restart"}),
    ],
)
def test_what_a_resume_may_change_is_no_difference(tmp_path: Path, change: Change) -> None:
    records = make_records()
    change(records)
    assert first_difference(write_run(tmp_path / "a", make_records()), write_run(tmp_path / "b", records)) is None


@pytest.mark.parametrize(("loss", "norm", "is_found"), [(7.006, 0.5, False), (7.008, 0.5, True), (7.0, 0.501, True)])
def test_a_tolerance_is_a_share_of_each_metric(loss: float, norm: float, is_found: bool, tmp_path: Path) -> None:
    """And the values of weights of two runs that differ in the last bits of a loss are not compared."""
    records = make_records()
    records[1] |= {"loss": loss, "grad_norm": norm}
    runs = write_run(tmp_path / "a", make_records()), write_run(tmp_path / "b", records, b"weighty")
    difference = first_difference(*runs, relative=1e-3)
    assert (difference is not None) == is_found
    assert difference is None or difference.startswith("step 2: ")


def test_with_a_tolerance_exports_have_the_same_tensors(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "a", make_records()), write_run(tmp_path / "b", make_records(), b"fewer")
    found = first_difference(*runs, relative=1e-3)
    assert found == f"{tmp_path}/b/model/model.safetensors has other tensors"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda records: records[1].update(loss=7.0 + 1e-12),
            "step 2: loss 7.0 and 7.000000000001, relative difference 1.4e-13",
        ),
        (lambda records: records[1].update(loss="nan"), "step 2: loss 7.0 and nan"),
        (lambda records: records[2].pop("grad_norm"), "step 3: grad_norm 0.5 and None"),
        (lambda records: records.append(records[1]), "step 2 is 2 times in "),
        (lambda records: records.pop(1), "step 2 is 0 times in "),
        (lambda records: records.append({"step": 4, "loss": 1.0}), "step 4 is not in "),
        (lambda records: records[3].update(eval_loss=6.4), "validation at step 3: eval_loss 6.5 and 6.4"),
        (lambda records: records[3].update({"task/t/acc": 0.6}), "validation at step 3: task/t/acc 0.5 and 0.6"),
        (lambda records: records.append({**records[4], "test_loss": 6.7}), "test at step 3: test_loss 6.6 and 6.7"),
        (lambda records: records.pop(), "test at step 3 is 0 times in "),
    ],
)
def test_each_difference_is_told_by_its_place(tmp_path: Path, change: Change, said: str) -> None:
    records = make_records()
    change(records)
    found = first_difference(write_run(tmp_path / "a", make_records()), write_run(tmp_path / "b", records))
    assert found is not None
    assert found.startswith(said)


def test_a_part_of_validation_is_not_compared_with_all_of_it(tmp_path: Path) -> None:
    """Both are of the last step, and each has one counterpart."""
    evaluations = [{"step": 2, "eval_loss": 2.5, "eval_blocks": 50}, {"step": 2, "eval_loss": 2.7}]
    records = [*make_records(), *evaluations]
    runs = [write_run(tmp_path / name, records) for name in ("a", "b")]
    assert first_difference(*runs) is None
    other = write_run(tmp_path / "c", [*make_records(), {**evaluations[0], "eval_loss": 2.6}, evaluations[1]])
    assert "validation at step 2, 50 blocks: eval_loss 2.5 and 2.6" in (first_difference(runs[0], other) or "")


def test_weights_are_compared_byte_for_byte(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "a", make_records())
    found = first_difference(run_dir, write_run(tmp_path / "b", make_records(), b"weighty"))
    assert found == f"{tmp_path}/b/model/model.safetensors has other weights"
    other = write_run(tmp_path / "c", make_records())
    (other / "model/model.safetensors").rename(other / "model/model-00001.safetensors")
    assert str(first_difference(run_dir, other)).endswith("model-00001.safetensors, not model.safetensors")
