from pathlib import Path

import jsonlines
import pytest

from pretraining.cli.errors import UserError
from pretraining.runs.checkpoints import (
    METRICS_NAME,
    checkpoint_problem,
    checkpoint_to_resume,
    claim_run_folder,
    newest_run,
    rotate_checkpoints,
    whole_checkpoints,
)
from pretraining.runs.metrics import log_lines


def make_checkpoint(run_dir: Path, step: int, *, ranks: int = 2) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    shards = folder / f"global_step{step}"
    shards.mkdir(parents=True)
    for rank in range(ranks):
        (shards / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (folder / f"rng_state_{rank}.pth").touch()
    (folder / "trainer_state.json").touch()
    return folder


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    made = [make_checkpoint(tmp_path, step) for step in (1000, 20, 300)]
    assert whole_checkpoints(tmp_path) == [made[1], made[2], made[0]]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("trainer_state.json", "did not finish"),
        ("rng_state_1.pth", "2 optimizer shards and 1 random states"),
        ("global_step20/*", "no ZeRO shards"),
    ],
)
def test_half_a_checkpoint_does_not_count(tmp_path: Path, damage: str, reason: str) -> None:
    good, bad = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    for path in bad.glob(damage):
        path.unlink()
    assert whole_checkpoints(tmp_path) == [good]
    assert reason in str(checkpoint_problem(bad))


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-", "checkpoint-12-old", "checkpoint-x", "model"):
        (tmp_path / name).mkdir()
    assert whole_checkpoints(tmp_path) == []


def test_a_checkpoint_of_other_processes_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 10, ranks=2)
    assert checkpoint_to_resume(tmp_path, "last", num_processes=2) == checkpoint
    with pytest.raises(UserError, match=r"saved by 2 processes, this run has 1; start with --num_gpus=2"):
        checkpoint_to_resume(tmp_path, "last", num_processes=1)


def test_another_run_is_not_written_over(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "mine", 10)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    claim_run_folder(theirs, checkpoint)
    (theirs / "run.json").touch()
    claim_run_folder(theirs, None)  # it never began
    (theirs / METRICS_NAME).touch()
    with pytest.raises(UserError, match="holds a run already"):
        claim_run_folder(theirs, checkpoint)
    claim_run_folder(tmp_path / "mine", checkpoint)


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    import os

    for name, age in (("b", 30), ("a", 10), ("c", 20)):
        (tmp_path / name).mkdir()
        record = tmp_path / name / "run.json"
        record.touch()
        os.utime(record, (1e9 - age, 1e9 - age))
    (tmp_path / "no_run").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"
    assert newest_run(tmp_path / "nowhere") is None


def test_the_line_of_a_step_says_what_people_look_for() -> None:
    record = {"step": 40, "loss": 2.5, "learning_rate": 3e-4, "grad_norm": 0.7, "seconds_left": 3900.0}
    record |= {"tokens_per_second_per_gpu": 14000.4, "mfu": 0.6512}
    assert log_lines(record, max_steps=1000) == [
        "step   40/1000  loss 2.5000  lr 3.00e-04  grad norm 0.700  14,000 tokens/s/GPU  MFU 65.1 %  1 h 05 min left"
    ]
    figures = {"eval_loss": 2.0, "eval_perplexity": 7.389, "eval_accuracy": 0.25, "eval_bits_per_byte": 0.8}
    by_source = {f"{name}/news": value for name, value in figures.items()}
    assert log_lines({"step": 40, **figures, **by_source}, max_steps=40) == [
        "step 40/40  validation loss 2.0000  perplexity 7.39  accuracy 25.0 %  0.800 bits/byte",
        "step 40/40    news     loss 2.0000  perplexity 7.39  accuracy 25.0 %  0.800 bits/byte",
    ]
    assert log_lines({"step": 40, "train_runtime": 3.0}, max_steps=40) == []


def test_the_oldest_checkpoints_go_but_one_that_is_kept(tmp_path: Path) -> None:
    made = {step: make_checkpoint(tmp_path, step) for step in (2, 10, 30, 40)}
    rotate_checkpoints(tmp_path, step=30, keep_last=1, keep_steps=(10, None))
    assert [step for step, folder in made.items() if folder.exists()] == [10, 30, 40], "40 is of another run"
    rotate_checkpoints(tmp_path, step=40, keep_last=1, keep_steps=(10, None))
    assert [step for step, folder in made.items() if folder.exists()] == [10, 40]


def test_records_after_the_resumed_step_are_made_again(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from pretraining.runs.metrics import MetricsLog

    with jsonlines.open(tmp_path / METRICS_NAME, "w") as writer:
        writer.write_all({"step": step, "loss": 1.0} for step in range(1, 6))
    state = TrainerState(global_step=3, max_steps=5, is_world_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    log = MetricsLog(tmp_path)
    log.on_train_begin(arguments, state, TrainerControl())
    state.global_step = 4
    log.on_log(arguments, state, TrainerControl(), logs={"loss": float("nan"), "learning_rate": 1e-3})
    log.on_train_begin(arguments, state, TrainerControl())
    with jsonlines.open(tmp_path / METRICS_NAME) as reader:
        assert [(record["step"], record["loss"]) for record in reader] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, "nan")]
