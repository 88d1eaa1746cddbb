import errno
import logging
import os
import random
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jsonlines
import pytest

from pretraining.errors import UserError
from pretraining.runs import checksums as completeness
from pretraining.runs.checksums import (
    COMPLETE_NAME,
    corruption_reason,
    incomplete_reason,
    record_file,
    write_manifest,
    xxh3_of,
)
from pretraining.runs.claim import checkpoint_to_resume
from pretraining.runs.run_folder import (
    METRICS_NAME,
    complete_checkpoints,
    newest_run,
    quarantine_unusable,
    rotate_checkpoints,
)


def make_checkpoint(run_dir: Path, step: int, *, finite: bool | None = True) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    paths = [folder / "trainer_state.json", folder / f"global_step{step}/shard.pt"]
    for path in paths:
        path.write_text("a few bytes")
    files = [record_file(folder, path) for path in paths]
    write_manifest(folder, files, step=step, num_processes=2, finite=finite)
    return folder


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    made = [make_checkpoint(tmp_path, step) for step in (1000, 20, 300)]
    assert complete_checkpoints(tmp_path) == [made[1], made[2], made[0]]
    assert checkpoint_to_resume(tmp_path, "auto") == made[0]
    assert checkpoint_to_resume(tmp_path, "never") is None
    assert checkpoint_to_resume(tmp_path, str(made[1])) == made[1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def write_other_bytes(path: Path) -> None:
    path.write_text("x few bytes")


@pytest.mark.parametrize(
    ("do_damage", "name", "reason"),
    [
        (Path.unlink, "complete.json", "complete.json is missing, the save did not finish"),
        (Path.unlink, "trainer_state.json", "trainer_state.json is missing"),
        (cut, "global_step20/shard.pt", "global_step20/shard.pt is damaged: it has 10 bytes, not 11"),
        (cut, "complete.json", "complete.json cannot be read"),
    ],
)
def test_half_a_checkpoint_does_not_count(
    do_damage: Callable[[Path], None], name: str, reason: str, tmp_path: Path
) -> None:
    good, bad = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    if name == "complete.json" and do_damage is cut:
        (bad / name).write_text('{"format_version": 1, "fi')
    else:
        do_damage(bad / name)
    assert complete_checkpoints(tmp_path) == [good]
    assert reason in str(incomplete_reason(bad))
    with pytest.raises(UserError, match="checkpoint is incomplete"):
        checkpoint_to_resume(tmp_path, str(bad))


def test_one_changed_bit_is_found_whoever_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(tmp_path, 20)
    assert corruption_reason(checkpoint) is None
    shard = checkpoint / "global_step20/shard.pt"
    recorded = xxh3_of(shard)
    write_other_bytes(shard)
    reason = f"global_step20/shard.pt is damaged: its XXH3 is {xxh3_of(shard)}, not {recorded}"
    assert incomplete_reason(checkpoint) == reason, "a small file is looked at"
    monkeypatch.setattr(completeness, "SMALL_BYTES", 0)
    assert incomplete_reason(checkpoint) is None, "all sizes are right"
    assert corruption_reason(checkpoint) == reason
    found = [corruption_reason(checkpoint, part=part, num_parts=3) for part in range(3)]
    assert [problem is not None for problem in found].count(True) == 1


def test_what_is_no_checkpoint_of_the_run_is_set_aside_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that was cut off, and what a later part of the run left that is not gone on with."""
    made = {step: make_checkpoint(tmp_path, step) for step in (10, 20, 30, 40)}
    (made[40] / "complete.json").unlink()
    (tmp_path / "checkpoint-30.superseded").mkdir()
    make_checkpoint(tmp_path, 5).rename(tmp_path / "checkpoint-5.removed")  # a rotation that was cut off
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)
    quarantine_unusable(tmp_path, step=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-20",
        "checkpoint-30.superseded",
        "checkpoint-30.superseded-2",
        "checkpoint-40.incomplete",
    ]
    unfinished = "checkpoint-40: complete.json is missing, the save did not finish"
    assert f"{unfinished}; renamed to checkpoint-40.incomplete\n" in caplog.text
    assert "checkpoint-30: is later than step 20; renamed to checkpoint-30.superseded-2\n" in caplog.text
    assert complete_checkpoints(tmp_path) == [made[10], made[20]]


def test_a_file_system_that_cannot_sync_folders_takes_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert incomplete_reason(make_checkpoint(tmp_path, 10)) is None


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-", "checkpoint-12-old", "checkpoint-x", "checkpoint-12.incomplete", "model"):
        (tmp_path / name).mkdir()
    assert complete_checkpoints(tmp_path) == []


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    for name, age in (("b", 30), ("a", 10), ("c", 20)):
        (tmp_path / name).mkdir()
        record = tmp_path / name / "run.json"
        record.touch()
        os.utime(record, (1e9 - age, 1e9 - age))
    (tmp_path / "no_run").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"
    assert newest_run(tmp_path / "nowhere") is None


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("seed", range(30))
def test_rotation_removes_complete_old_checkpoints_and_nothing_else(seed: int, tmp_path: Path) -> None:
    """Over limits and run folders drawn at random, with what else can lie in them."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, 200), draw.randrange(9)))
    limit = draw.choice([None, -3, -1, 0, 1, 1, 2, 2, 3, 9])
    kinds = {step: draw.choice(["finite", "finite", "unknown", "incomplete", "link", "moved"]) for step in steps}
    for step, kind in kinds.items():
        folder = make_checkpoint(tmp_path, step, finite=True if kind == "finite" else None)
        if kind == "incomplete":
            (folder / COMPLETE_NAME).unlink()
        elif kind == "link":
            folder.symlink_to(folder.rename(tmp_path / f"elsewhere-{step}"))
        elif kind == "moved":  # of another step, and copied here under this name
            make_checkpoint(tmp_path / "other", step + 1000).replace(tmp_path / "copied")
            shutil.rmtree(folder)
            (tmp_path / "copied").rename(folder)
    keep = (None, *draw.sample(steps, min(len(steps), draw.randrange(4))))
    before = names(tmp_path)
    complete = [step for step in steps if kinds[step] != "incomplete"]
    finite = [step for step in complete if kinds[step] in ("finite", "moved")]

    rotate_checkpoints(tmp_path, keep_last=limit, keep_steps=keep)

    unlimited = limit is None or limit <= 0
    newest = set(complete) if unlimited else {step for i, step in enumerate(complete) if len(complete) - i <= limit}
    stay = newest | {*keep} | set(finite[-1:]) | {step for step in steps if kinds[step] not in ("finite", "unknown")}
    gone = {name for name in before if name.split("/")[0] in {f"checkpoint-{step}" for step in set(steps) - stay}}
    assert names(tmp_path) == before - gone, (limit, kinds, keep)
    assert len(stay & set(complete)) >= min(len(complete), 1)


def test_what_a_kill_left_of_a_removal_goes_and_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    for name in ("checkpoint-5.removed", "checkpoint-6.removed-2"):
        step = int(name[11])
        make_checkpoint(tmp_path, step).rename(tmp_path / name)
        shutil.rmtree(tmp_path / name / f"global_step{step}")
    for name in ("checkpoint-1.removed", "checkpoint-2.removed-by-me", "checkpoint-3.removed.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    make_checkpoint(tmp_path, 4).rename(tmp_path / "checkpoint-7.removed")
    (tmp_path / "elsewhere").mkdir()
    make_checkpoint(tmp_path / "elsewhere", 8)
    (tmp_path / "checkpoint-8.removed").symlink_to(tmp_path / "elsewhere/checkpoint-8")
    rotate_checkpoints(tmp_path, keep_last=0, keep_steps=())
    quarantine_unusable(tmp_path, step=9)
    left = ["checkpoint-1.removed", "checkpoint-2.removed-by-me", "checkpoint-3.removed.bak", "checkpoint-7.removed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "checkpoint-8.removed", "elsewhere"]
    assert len(names(tmp_path / "elsewhere/checkpoint-8")) == 4


@pytest.mark.parametrize("change", range(1, 7))
def test_a_removal_that_is_killed_is_finished_by_the_next(
    change: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [make_checkpoint(tmp_path, step) for step in (1, 2)]
    left = change

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def die(*args: object, **kwargs: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise KeyboardInterrupt
            real(*args, **kwargs)

        return die

    with monkeypatch.context() as context, suppress(KeyboardInterrupt):
        for name in ("unlink", "rmdir", "rename"):
            context.setattr(os, name, dying(getattr(os, name)))
        rotate_checkpoints(tmp_path, keep_last=1, keep_steps=())
    assert complete_checkpoints(tmp_path)[-1] == made[1]
    rotate_checkpoints(tmp_path, keep_last=1, keep_steps=())
    left_over = [path for path in tmp_path.iterdir() if path != made[1]]
    assert all(not any(path.iterdir()) for path in left_over), "an empty folder at most"


def test_records_after_the_resumed_step_are_made_again(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from pretraining.runs.tracking.metrics_log import MetricsLog

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
