"""The learning rate of each step: the first is not 0, the last is the floor, and wsd can be made longer."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

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
    too_long = "^--warmup_steps 2000: 2,000 steps of warmup and 50 of .*; use --warmup_steps 0.1 --decay_steps 0.1 for"
    with pytest.raises(UserError, match=too_long):
        make_schedule(parse_pretrain_arguments("", [*words, "--warmup_steps", "2000"]), num_steps=55)
    words += ["--warmup_steps", "0.1", "--decay_steps", "0.1"]
    assert make_schedule(parse_pretrain_arguments("", words), num_steps=55).last_stable_step < 55


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


def phased(tmp_path: Path, *phases: str, flags: Sequence[str] = (), num_steps: int = 100) -> Schedule:
    """The schedule of phases of 90 and 10 steps, of fields as a recipe has them."""
    shares = (0.9, 0.1)
    lines = [f"  - {{name: p{n}, dataset: x, share: {shares[n]}{phase}}}\n" for n, phase in enumerate(phases)]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"max_steps: {num_steps}\nphases:\n{''.join(lines)}")
    words = ["--recipe", str(path), "--warmup_steps", "10", "--learning_rate", str(PEAK), *flags]
    words += [] if "--min_learning_rate" in flags else ["--min_learning_rate", str(FLOOR)]
    return make_schedule(parse_pretrain_arguments("", words), num_steps=num_steps)


def test_a_phase_without_a_schedule_continues_that_of_the_phase_before(tmp_path: Path) -> None:
    assert phased(tmp_path, "", "") == schedule("cosine", decay_steps=10)
    with_fields = phased(tmp_path, ", lr_scheduler_type: linear, min_learning_rate: 0", "")
    assert with_fields == dataclasses.replace(schedule("linear", decay_steps=10), minimum=0)


def test_a_later_phase_goes_from_where_the_one_before_ends_to_zero(tmp_path: Path) -> None:
    made = phased(tmp_path, "", ", lr_scheduler_type: linear")
    first = schedule("cosine", num_steps=90, decay_steps=9)
    assert [made.learning_rate(step) for step in range(1, 91)] == [first.learning_rate(step) for step in range(1, 91)]
    by_hand = Schedule("linear", first.learning_rate(90), 0.0, warmup_steps=90, decay_steps=1, num_steps=100)
    assert [made.learning_rate(step) for step in range(91, 101)] == [by_hand.learning_rate(n) for n in range(91, 101)]
    assert made.learning_rate(100) == 0
    assert made.at(90) is made
    assert made.at(91) is made.later[0]


def test_a_later_phase_can_warm_up_and_be_wsd(tmp_path: Path) -> None:
    made = phased(
        tmp_path,
        ", lr_scheduler_type: constant",
        ", lr_scheduler_type: wsd, learning_rate: 1e-3, warmup_steps: 0.4, decay_steps: 4",
    )
    rates = [made.learning_rate(step) for step in range(91, 101)]
    assert rates[:4] == pytest.approx([PEAK + (1e-3 - PEAK) * part / 4 for part in (1, 2, 3, 4)])
    assert rates[4:6] == [1e-3, 1e-3]
    assert rates[6:] == pytest.approx([1e-3 * (1 - math.sqrt(part / 4)) for part in (1, 2, 3, 4)])
    assert made.stable_steps == (96,)
    assert phased(tmp_path, ", lr_scheduler_type: wsd, decay_steps: 9", "").stable_steps == (91,)


def test_a_schedule_can_be_longer_or_shorter_than_the_run(tmp_path: Path) -> None:
    flags = ["--schedule_steps", "200", "--warmup_steps", "0.05"]
    longer = phased(tmp_path, "", ", lr_scheduler_type: linear", flags=flags)
    whole = schedule("cosine", num_steps=200, decay_steps=20)
    assert [longer.learning_rate(step) for step in (1, 10, 90)] == [whole.learning_rate(step) for step in (1, 10, 90)]
    assert longer.later[0].peak == whole.learning_rate(90)
    shorter = phased(tmp_path, "", "", flags=["--schedule_steps", "50"])
    assert {shorter.learning_rate(step) for step in (50, 51, 100)} == {FLOOR}
    with pytest.raises(UserError, match="more than the 15 of --schedule_steps"):
        phased(tmp_path, "", "", flags=["--schedule_steps", "15", "--lr_scheduler_type", "wsd", "--decay_steps", "9"])


def test_phases_that_have_no_rate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--phases: p1: the phase before ends at a learning rate of 0; add learning_"):
        phased(tmp_path, ", min_learning_rate: 0", ", lr_scheduler_type: constant")
    with pytest.raises(UserError, match="p1: decay_steps 30: 0 steps of warmup and 30 of decay are more than"):
        phased(tmp_path, "", ", lr_scheduler_type: wsd, decay_steps: 30")
    message = r"--phases: p1: min_learning_rate 0\.1: is above the learning rate of 0\.0003; use 0\.0003 or less"
    with pytest.raises(UserError, match=message):
        phased(tmp_path, "", ", min_learning_rate: 0.1, learning_rate: 3e-4")
    with pytest.raises(UserError, match=r"^--min_learning_rate 0\.001: is above the learning rate of 0\.0005; use"):
        phased(tmp_path, ", learning_rate: 5e-4", "", flags=["--min_learning_rate", "1e-3", "--learning_rate", "1e-2"])
    with pytest.raises(UserError, match=r"^--phases: p0: decay_steps 85: 10 steps of warmup and 85 of decay are more"):
        phased(tmp_path, ", lr_scheduler_type: wsd, decay_steps: 85", ", learning_rate: 1e-3")


def test_a_phase_can_have_a_peak_above_a_lowest_rate_that_is_above_the_flag_s(tmp_path: Path) -> None:
    flags = ["--min_learning_rate", "5e-4", "--learning_rate", "3e-4"]
    made = phased(tmp_path, ", learning_rate: 1e-3", "", flags=flags)
    assert (made.peak, made.minimum) == (1e-3, 5e-4)


def test_torch_sets_the_rates_of_every_phase_to_the_bit(tmp_path: Path) -> None:
    """As a run by hand whose peak is that of the phase: base rate times factor."""
    made = phased(tmp_path, "", ", lr_scheduler_type: linear")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    driven, later = made.torch_scheduler(optimizer), made.later[0]
    for step in range(1, 101):
        part = made if step <= 90 else later
        assert driven.get_last_lr() == [part.peak * (made.learning_rate(step) / part.peak)]
        optimizer.step()
        driven.step()


def test_a_schedule_is_read_from_its_record(tmp_path: Path) -> None:
    made = phased(tmp_path, "", ", lr_scheduler_type: linear")
    recorded = json.loads(json.dumps(made.record()))
    check_same_until(100, recorded, made, place="")
    with pytest.raises(UserError, match="its learning rate at step 91 was"):
        check_same_until(100, recorded, phased(tmp_path, "", ", lr_scheduler_type: constant"), place="")
    assert schedule("cosine").record().keys() == {
        "shape",
        "peak",
        "minimum",
        "warmup_steps",
        "decay_steps",
        "num_steps",
    }
    with pytest.raises(UserError, match="its schedule is damaged"):
        check_same_until(1, {**recorded, "later": [{}]}, made, place="")
