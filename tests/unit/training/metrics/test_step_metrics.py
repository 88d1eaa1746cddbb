"""What a checkpoint keeps between two lines of the log is counted, whatever the sources were when it was saved."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from pretraining.training.data.batch import collate_targets
from pretraining.training.metrics.step_metrics import TARGET_WINDOW_STEPS, StepMetrics
from pretraining.training.model.loss import token_losses

PREDICTED = 3  # of a block of 4 tokens


def watch(*sources: str, has_same_data: bool = True) -> StepMetrics:
    return StepMetrics(sources=sources, spike_threshold=8.0, device=torch.device("cpu"), has_same_data=has_same_data)


def read(one: StepMetrics, *sources: int) -> StepMetrics:
    """A step of a block of each of these sources, whose tokens are all guessed among 8."""
    items = [{"labels": torch.zeros(4, dtype=torch.long), "sources": torch.full((4,), source)} for source in sources]
    batch = collate_targets(items)
    logits = torch.zeros(len(sources), 4, 8)
    one.add(token_losses(SimpleNamespace(logits=logits), batch["labels"]), batch)
    one.finish_step(was_skipped=False)
    return one


def resumed(before: StepMetrics, after: StepMetrics) -> StepMetrics:
    after.restore(before.state()["attributes"])
    return after


def test_an_interval_of_two_sets_of_sources_has_all_of_them() -> None:
    before = read(watch("news", "wiki"), 0, 0, 1)
    metrics = read(resumed(before, watch("books", "news")), 0, 1).pop_metrics()
    tokens = {name: count for name, count in metrics.items() if name.startswith("tokens/")}
    assert tokens == {"tokens/books": PREDICTED, "tokens/news": 3 * PREDICTED, "tokens/wiki": PREDICTED}
    assert {name for name in metrics if name.startswith("loss/")} == {"loss/books", "loss/news", "loss/wiki"}
    assert metrics["loss"] == pytest.approx(math.log(8))

    later = read(resumed(before, watch("wiki", "news")), 0).pop_metrics()
    assert (later["tokens/wiki"], later["tokens/news"]) == (2 * PREDICTED, 2 * PREDICTED), "in another order"


@pytest.mark.parametrize("way", [("one", "five"), ("five", "one")])
def test_between_one_source_and_several(way: tuple[str, str]) -> None:
    names = {"one": ("all",), "five": ("a", "b", "c", "d", "e")}
    first, second = (names[name] for name in way)
    both = resumed(read(watch(*first), 0), watch(*second))
    metrics = read(both, 0).pop_metrics()
    found = {name: count for name, count in metrics.items() if "/" in name and name.startswith("tokens")}
    assert found == ({} if way[1] == "one" else {"tokens/a": PREDICTED} | {f"tokens/{name}": 0 for name in "bcde"})
    again = read(resumed(both, watch(*first)), 0).pop_metrics()
    assert again.get("tokens/a") == (None if way[0] == "one" else 2 * PREDICTED), "what was read before counts still"


def test_the_window_of_the_target_is_kept_by_a_checkpoint_and_has_finite_losses_alone() -> None:
    """50 losses of ln 8, one of NaN among them."""
    before = watch("news")
    for _ in range(TARGET_WINDOW_STEPS - 1):
        read(before, 0)
    before._step_sums.fill_(math.nan)
    before.finish_step(was_skipped=True)
    assert before.window_loss is None
    after = resumed(before, watch("news"))
    assert after.window_loss is None
    for metrics in (before, after):
        assert read(metrics, 0).window_loss == pytest.approx(math.log(8))
    assert resumed(before, watch("news")).window_loss == before.window_loss
    without = before.state()["attributes"]
    del without["window_losses"]
    after.restore(without)
    assert after.window_loss is None, "a checkpoint of an earlier version"


def test_sums_of_the_same_sources_are_restored_without_names(caplog: pytest.LogCaptureFixture) -> None:
    saved = read(watch("news", "wiki"), 0, 1, 1).state()["attributes"]
    saved["tokens_by_source"], saved["interval_sums"] = (
        [*saved[n].values()] for n in ("tokens_by_source", "interval_sums")
    )
    same = watch("news", "wiki")
    same.restore(saved)
    assert same.pop_metrics()["tokens/wiki"] == 2 * PREDICTED
    logging.getLogger("pretraining").propagate = True
    for sources, has_same_data in ((("a", "b", "c"), True), (("news", "wiki"), False)):
        caplog.clear()
        other = watch(*sources, has_same_data=has_same_data)
        other.restore(saved)
        assert other.pop_metrics()[f"tokens/{sources[0]}"] == 0
        assert len(caplog.messages) == 1
