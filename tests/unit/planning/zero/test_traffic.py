"""What is sent, in units of the weights' bytes; the messages of real runs are counted in test_model_states.py."""

from dataclasses import replace

import pytest

from pretraining.planning.layout import TrainingLayout
from pretraining.planning.zero.traffic import Sent, sent_per_step
from tests.unit.planning.layouts import layout_of

P = 6_738_415_616


def at(stage: int, *, num_gpus: int = 16, hpz: int = 1, reuse: int = 0) -> TrainingLayout:
    layout = layout_of("llama2_7b", num_gpus=num_gpus)
    settings = {"stage": stage, "hpz_partition_size": hpz, "max_reuse_distance": reuse}
    return replace(layout, zero=replace(layout.zero, **settings))


def units(sent: Sent) -> tuple[float, float]:
    """In units of the weights' bytes, times the 15 other GPUs of 16."""
    each = 2 * P * 15 / 16
    return sent.to_all / each, sent.total / each


@pytest.mark.parametrize("num_micro_steps", [1, 4, 16])
def test_each_stage_sends_what_its_formula_says(num_micro_steps: int) -> None:
    k = num_micro_steps
    assert units(sent_per_step(at(3), k)) == pytest.approx((3 * k, 3 * k), rel=1e-3)
    assert units(sent_per_step(at(2), k)) == pytest.approx((2 * k + 1, 2 * k + 1), rel=1e-3)
    assert units(sent_per_step(at(1), k)) == pytest.approx((3, 3), rel=1e-3)
    # One gather and all gradients among all; the other gathers within the machine, by 7 of 8.
    local = (2 * k - 1) * (7 / 8) / (15 / 16)
    assert units(sent_per_step(at(3, hpz=8), k)) == pytest.approx((k + 1, k + 1 + local), rel=1e-3)


def test_what_gpus_send_is_that_of_the_guide() -> None:
    """docs/guides/multi-gpu.md, of a micro step: 19.7, 29.6 and 34.5 GB."""
    sent = [sent_per_step(at(3, num_gpus=number, reuse=10**9), 1).total / 1e9 for number in (1, 2, 4, 8)]
    assert sent == pytest.approx([0, 19.7, 29.6, 34.5], abs=0.1)


def test_a_small_model_is_gathered_once_per_micro_step() -> None:
    """Backward needs each of its weights soon enough, so that they stay."""
    shape = replace(layout_of("llama2_7b").shape, num_hidden_layers=1)
    kept, again = (replace(at(3, num_gpus=2, reuse=reuse), shape=shape) for reuse in (10**9, 0))
    assert sent_per_step(kept, 1).total == pytest.approx(sent_per_step(again, 1).total * 2 / 3, rel=1e-3)
