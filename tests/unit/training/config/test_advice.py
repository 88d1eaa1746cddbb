"""What is said before a run on real blocks: nothing about a good one, and once about each split that is empty."""

from dataclasses import replace
from pathlib import Path

import pytest

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.data.mixture import Mixture, load_mixture
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.config.advice import RunAdvice, empty_split_warnings
from pretraining.training.optim.schedule import make_schedule
from tests.conftest import PROJECT_DIR
from tests.unit.planning.layouts import layout_of


def advice_on(datasets: list[str], *words: str, num_steps: int) -> RunAdvice:
    """Advice on steps of 8 blocks."""
    flags = ["--deepspeed", str(PROJECT_DIR / "ds_config.json"), "--dataset", *datasets, *words]
    batch = GlobalBatch(64, 2, 4, 1, flag="--global_batch_blocks 8")
    layout = replace(layout_of("llama2_7b"), block_length=64)
    mixture = load_mixture(datasets, revision=None)
    arguments = parse_pretrain_arguments("", [*flags, "--warmup_steps", "2"])
    return RunAdvice(arguments, mixture, layout, batch, num_steps, make_schedule(arguments, num_steps=num_steps))


def without_blocks(mixture: Mixture, split: str, *, weights: list[int]) -> Mixture:
    """A mixture whose stores have no block in a split."""
    parts = []
    for part in mixture.parts:
        manifest = part.store.manifest
        splits = {**manifest.splits, split: replace(manifest.splits[split], num_blocks=0)}
        other = replace(manifest, splits=splits, origin=replace(manifest.origin, split_weights=weights))
        parts.append(replace(part, store=replace(part.store, manifest=other)))
    return Mixture(tuple(parts))


def test_a_good_run_has_no_warning(sample_store: Path) -> None:
    advice = advice_on([str(sample_store)], num_steps=200)
    assert list(advice.warnings()) == []
    assert advice.unread() is None, "it reads all"
    assert list(empty_split_warnings(advice.mixture, evaluates=True)) == []


def test_each_source_of_a_mixture_is_counted(sample_store: Path) -> None:
    datasets = [f"often={sample_store}:0.9", f"rarely={sample_store}:0.1"]
    (num_blocks, _) = load_mixture(datasets, revision=None).num_blocks("train")
    num_steps = 16 * num_blocks // 8  # 14.4 and 1.6 epochs
    (line,) = advice_on(datasets, "--max_steps", str(num_steps), num_steps=num_steps).warnings()
    assert line.startswith("--dataset: the run reads often 14.4 times; ")
    assert f"use often={sample_store}:0." in line


def test_a_phase_that_ends_before_its_warmup_is_named(sample_store: Path) -> None:
    advice = advice_on([str(sample_store)], num_steps=200)
    phases = [PhaseArguments("a", ["x"], 0.25), PhaseArguments("b", ["x"], 0.75, "linear", 1e-4, warmup_steps=20)]

    def warnings(**first: float) -> list[str]:
        data = replace(advice.arguments.data, phases=[replace(phases[0], **first), phases[1]])
        arguments = replace(advice.arguments, data=data)
        schedule = make_schedule(arguments, num_steps=200)
        return list(replace(advice, arguments=arguments, schedule=schedule).warnings())

    assert warnings() == warnings(warmup_steps=50) == []
    assert warnings(warmup_steps=60) == [
        "--phases: a: its warmup of 60 steps is longer than the 50 of its schedule, so the learning rate never reaches "
        "3.00e-04; use warmup_steps 0.1"
    ]


def test_evaluations_of_the_flags(sample_store: Path) -> None:
    """Forty of the whole validation take more than a tenth of 200 steps of 8 blocks; of 10 blocks they do not."""
    (line,) = advice_on([str(sample_store)], "--eval_steps", "5", num_steps=200).warnings()
    assert line.startswith("--eval_steps 5: evaluation will take about ")
    assert (
        list(advice_on([str(sample_store)], "--eval_steps", "5", "--eval_blocks", "10", num_steps=200).warnings()) == []
    )
    share = advice_on([str(sample_store)], "--eval_steps", "0.1", num_steps=200).evaluation
    assert (share.eval_steps, share.num_evaluations) == (20, 9), "a share of the run"
    off = advice_on([str(sample_store)], "--eval_strategy", "no", num_steps=200)
    assert list(off.warnings()) == []
    assert 0 < off.evaluation.share < 0.1, "the final ones"


def test_an_empty_split_is_said_unless_it_was_wanted(sample_store: Path) -> None:
    mixture = load_mixture([str(sample_store)], revision=None)
    (line,) = empty_split_warnings(without_blocks(mixture, "test", weights=[949, 50, 1]), evaluates=True)
    assert line == f"{sample_store}: test has no block, so there will be no test loss"
    for weights, resumes in (([95, 5, 0], False), ([90, 5, 5], True)):
        empty = without_blocks(mixture, "test", weights=weights)
        assert list(empty_split_warnings(empty, evaluates=True, resumes=resumes)) == []
    without_both = without_blocks(without_blocks(mixture, "test", weights=[1, 0, 0]), "validation", weights=[1, 0, 0])
    assert list(empty_split_warnings(without_both, evaluates=True)) == [], "--split 1,0,0"
    (line,) = empty_split_warnings(without_blocks(mixture, "validation", weights=[90, 5, 5]), evaluates=True)
    assert "validation has no block" in line


@pytest.mark.parametrize(("num_steps", "expected"), [(10, "reads all"), (10**6, None)])
def test_what_is_not_read(sample_store: Path, num_steps: int, expected: str | None) -> None:
    unread = advice_on([str(sample_store)], "--max_steps", str(num_steps), num_steps=num_steps).unread()
    assert unread is None if expected is None else expected in (unread or "")
