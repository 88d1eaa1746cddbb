"""Evaluations are counted as the Trainer makes them, and the flags that are suggested bound them."""

import random
import re
from dataclasses import replace

import pytest

from pretraining.planning.evaluation import MAX_SHARE, EvaluationPlan, evaluation_batch
from pretraining.planning.global_batch import GlobalBatch

PLAN = EvaluationPlan(
    eval_steps=100,
    first_step=0,
    on_start=False,
    num_blocks=400,
    num_validation_blocks=400,
    num_test_blocks=100,
    num_steps=1000,
    batch=GlobalBatch(1024, 4, 2, 2),
    forwards_per_block=3,
)


def evaluated_steps(plan: EvaluationPlan) -> list[int]:
    """What transformers' DefaultFlowCallback asks for: each multiple, and the last step."""
    steps = range(1, plan.num_steps + 1)
    asked = [step for step in steps if step % plan.eval_steps == 0 or step == plan.num_steps]
    return [0] * plan.on_start + [step for step in asked if step >= plan.first_step]


def random_plan(draw: random.Random) -> EvaluationPlan:
    num_steps, whole = draw.randint(1, 3000), draw.randint(1, 20_000)
    batch = GlobalBatch(64, draw.choice((1, 2, 8)), draw.choice((1, 4, 64)), draw.choice((1, 2, 8)))
    return EvaluationPlan(
        eval_steps=draw.randint(1, 1000),
        first_step=draw.choice((0, draw.randint(0, 4000))),
        on_start=draw.random() < 0.2,
        num_blocks=draw.choice((whole, draw.randint(1, whole))),
        num_validation_blocks=whole,
        num_test_blocks=draw.randint(0, 500),
        num_steps=num_steps,
        batch=batch,
        forwards_per_block=draw.choice((3, 3.5, 4)),
    )


def test_the_evaluations_are_those_of_the_trainer() -> None:
    """One of the whole validation after the last step is the final one, which flags cannot spare."""
    draw = random.Random(1)
    for plan in (random_plan(draw) for _ in range(500)):
        steps = evaluated_steps(plan)
        is_final = not plan.is_partial and steps[-1:] == [plan.num_steps]
        assert plan.num_evaluations == len(steps) - is_final, plan


def test_the_share_is_that_of_all_forward_passes() -> None:
    """9 evaluations of 400 blocks before the last step, then 400 and 100; 16 x 1,000 blocks of three passes."""
    assert PLAN.share == 4100 / (48_000 + 4100)
    assert PLAN.share_during_training == 3600 / (48_000 + 3600)
    partial = replace(PLAN, num_blocks=41)
    assert partial.share == 920 / (48_000 + 920), "10 evaluations of 42: each of two processes reads 21"
    checkpointed = replace(PLAN, forwards_per_block=4)
    assert checkpointed.share == 4100 / (64_000 + 4100)
    assert replace(PLAN, num_blocks=0).share == 500 / 48_500, "--eval_strategy no leaves the final ones"


@pytest.mark.guarantee("A start warns if evaluations would take more than a tenth of the time, with flags that fit.")
def test_the_flags_that_are_suggested_fit() -> None:
    draw = random.Random(2)
    seen = {"--eval_blocks": 0, "--eval_steps": 0, "--eval_strategy": 0, "none": 0}
    for plan in (random_plan(draw) for _ in range(3000)):
        advice = plan.advice()
        assert (advice is None) == (plan.share_during_training <= MAX_SHARE)
        if advice is None:
            seen["none"] += 1
            continue
        flags = re.findall(r"(--eval_(?:blocks|steps|strategy)) (\d+|no)", advice.partition("; use ")[2])
        assert flags, advice
        for flag, value in flags:
            seen[flag] += 1
            if flag != "--eval_strategy":
                name = {"--eval_blocks": "num_blocks", "--eval_steps": "eval_steps"}[flag]
                fitting = replace(plan, **{name: int(value)})
                assert fitting.advice() is None, (plan, flag, value)
    assert all(seen.values()), seen


def test_the_advice_reads_well() -> None:
    """250 M tokens of news in blocks of 1,024, of which 5 % are validation, and steps of 8 blocks."""
    batch = GlobalBatch(1024, 8, 1, 1)
    news = replace(PLAN, batch=batch, num_blocks=12_000, num_validation_blocks=12_000, num_steps=29_000)
    assert news.advice() == (
        "--eval_steps 100: evaluation will take about 83 % of the time (289 x 12,000 blocks while 232,000 are trained "
        "on); use --eval_blocks 260 or --eval_steps 4200 to stay below 10 % until the last step"
    )
    assert PLAN.advice() is None
    # Whole final evaluations of 4,000 blocks are not those that the flags bound.
    final = replace(PLAN, num_blocks=41, num_validation_blocks=4000, num_steps=100, eval_steps=10)
    assert final.share_during_training < MAX_SHARE < final.share
    assert final.advice() is None
    often = replace(final, eval_steps=5)
    assert f"about {100 * often.share_during_training:.0f} % of the time" in (often.advice() or "")


@pytest.mark.parametrize(("max_blocks", "num_groups"), [(1, 1), (8, 1), (32, 1), (4, 2), (32, 8)])
def test_an_evaluation_pads_as_little_as_it_can(max_blocks: int, num_groups: int) -> None:
    for num_blocks in range(1, 400):
        size = evaluation_batch(num_blocks, max_blocks=max_blocks, num_groups=num_groups)
        num_batches = -(-num_blocks // (size * num_groups))
        assert 1 <= size <= max_blocks
        assert num_batches == -(-num_blocks // (max_blocks * num_groups)), "no more of them than the largest size takes"
        assert num_batches * size * num_groups - num_blocks < num_batches * num_groups
