"""The learning rate of each step: the first is not 0, the last is the floor, and wsd can be made longer."""

import dataclasses
import itertools
import math

import pytest
import torch

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.training.optim.schedule import Schedule, check_same_until, make_schedule

PEAK, FLOOR = 3e-4, 3e-5


def schedule(shape: str, **changes: int) -> Schedule:
    return Schedule(shape, PEAK, FLOOR, **{"warmup_steps": 10, "decay_steps": 20, "num_steps": 100, **changes})


@pytest.mark.parametrize("shape", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_begins_above_zero_and_ends_at_the_peak(shape: str) -> None:
    rates = [schedule(shape).learning_rate(step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([PEAK * step / 10 for step in range(1, 11)])
    assert max(rates) == PEAK
    assert all(now >= after for now, after in itertools.pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(PEAK if shape == "constant" else FLOOR)
    assert schedule(shape, warmup_steps=0).learning_rate(1) > 0.9 * PEAK


def test_the_shapes_are_those_of_their_papers() -> None:
    assert schedule("cosine").learning_rate(55) == pytest.approx((PEAK + FLOOR) / 2)
    assert schedule("cosine").learning_rate(32.5) == pytest.approx(FLOOR + (PEAK - FLOOR) * (1 + math.sqrt(0.5)) / 2)
    assert schedule("linear").learning_rate(55) == pytest.approx((PEAK + FLOOR) / 2)
    assert schedule("wsd").learning_rate(80) == PEAK
    assert schedule("wsd").learning_rate(85) == pytest.approx(FLOOR + (PEAK - FLOOR) * (1 - 0.5))


def test_torch_drives_it_step_by_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    driven = schedule("cosine").torch_scheduler(optimizer)
    for step in range(1, 101):
        assert driven.get_last_lr()[0] == pytest.approx(schedule("cosine").learning_rate(step))
        optimizer.step()
        driven.step()
    assert "lr_lambdas" not in driven.state_dict() or driven.state_dict()["lr_lambdas"] == [None]


@pytest.mark.parametrize("peak", [PEAK, 3e-3])
def test_what_is_put_into_a_scheduler_is_what_torch_would_have_come_to(peak: float) -> None:
    """To the bit, for the first step of a run that goes on, and for those after it, whatever peak was saved."""
    planned = dataclasses.replace(schedule("cosine"), peak=peak)
    driven, resumed = (
        planned.torch_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)) for _ in range(2)
    )
    for num_done in range(99):
        resumed.load_state_dict({**driven.state_dict(), "base_lrs": [0.1]})
        planned.put_into(resumed, num_done=num_done)
        assert resumed.get_last_lr() == driven.get_last_lr(), f"step {num_done + 1}"
        assert resumed.optimizer.param_groups[0]["lr"] == driven.get_last_lr()[0]
        for scheduler in (driven, resumed):
            scheduler.optimizer.step()
            scheduler.step()
        assert resumed.get_last_lr() == driven.get_last_lr(), f"the step after {num_done + 1}"


def test_a_run_is_made_longer_from_its_stable_phase_only() -> None:
    recorded = dataclasses.asdict(schedule("wsd"))
    longer = schedule("wsd", num_steps=200)
    assert schedule("wsd").last_stable_step == 80
    check_same_until(80, recorded, longer, place="")
    with pytest.raises(UserError, match="its learning rate at step 81 was") as caught:
        check_same_until(100, recorded, longer, place="--resume x")
    assert str(caught.value).endswith("resume from a checkpoint before that step, or pass --allow_changed schedule")
    with pytest.raises(UserError, match="step 11 "):
        check_same_until(80, dataclasses.asdict(schedule("cosine")), schedule("cosine", num_steps=200), place="")
    check_same_until(80, dataclasses.asdict(schedule("constant")), schedule("constant", num_steps=200), place="")


def test_flags_are_steps_or_shares_of_the_run() -> None:
    words = ["--lr_scheduler_type", "wsd", "--warmup_steps", "0.01", "--decay_steps", "0.2", "--learning_rate", "1e-3"]
    made = make_schedule(parse_pretrain_arguments("", words), num_steps=1000)
    assert made == Schedule("wsd", 1e-3, 1e-4, warmup_steps=10, decay_steps=200, num_steps=1000)
    words += ["--decay_steps", "50", "--min_learning_rate", "0"]
    made = make_schedule(parse_pretrain_arguments("", words), num_steps=1000)
    assert (made.decay_steps, made.minimum) == (50, 0)
    with pytest.raises(UserError, match="--decay_steps 50: 10 steps of warmup and 50 of decay are more than the 55"):
        make_schedule(parse_pretrain_arguments("", [*words, "--warmup_steps", "10"]), num_steps=55)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--lr_scheduler_type", "cosin"],
            "'cosin' is not one of cosine, wsd, linear, constant (did you mean cosine?)",
        ),
        (["--min_learning_rate", "1", "--learning_rate", "0.1"], "--min_learning_rate 1: is above --learning_rate 0.1"),
        (["--max_steps", "3", "--max_tokens", "9"], "--max_tokens 9 --max_steps 3: exclude each other; keep one"),
        (["--max_tokens", "0"], "--max_tokens 0: must be in [1, 1e18]"),
        (["--eval_strategy", "epoch"], "--eval_strategy: 'epoch' is not one of no, steps; epochs follow each other"),
        (["--learning_rate", "0"], "--learning_rate 0: must be in (0, 1]"),
        (["--optim", "adamw_8bits"], "is not one of adamw, adamw_bf16, adamw_8bit, muon (did you mean adamw_8bit?)"),
        (
            ["--fp16", "--loss_tiles", "4"],
            "--loss_tiles --fp16: the gradient of a tile is computed before fp16's loss scaling",
        ),
        (["--gradient_accumulation_steps", "-2"], "--gradient_accumulation_steps -2: must be in [1, 1e6]"),
        (["--save_only_model"], "cannot be resumed; use --export_every_tokens N"),
        (["--on_spike", "panic"], "'panic' is not one of warn, rollback"),
        (["--spike_threshold", "0"], "--spike_threshold 0: must be in (0, 1e9]"),
        (["--lr_scheduler_kwargs", "{}"], "--lr_scheduler_kwargs: use --lr_scheduler_type"),
        (["--hub_strategy", "all_checkpoints"], "'all_checkpoints' is not one of end, every_save"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pretrain_arguments("", words)
    assert expected in str(caught.value)
