"""Metrics of tasks, reckoned by hand from log-likelihoods."""

import math

import numpy as np
import pytest

from pretraining.training.tasks.files import Example, FileTask
from pretraining.training.tasks.metrics import file_task_metrics

CHOICES = FileTask(
    "choices",
    [
        Example("a", ("bb", "cccc"), 0, " "),  # -2 and -3: right; per character -1 and -0.75: wrong
        Example("a", ("bb", "ccc", "d"), 1, " "),  # -4, -3, -5: right both ways
        Example("a", ("b", "é"), 1, " "),  # -1 and -2: wrong both ways
        Example("a", ("bbbb", "c"), 0, " "),  # -4 and -3: wrong; per character -1 and -3: right
    ],
)
LOG_LIKELIHOODS = np.array([-2.0, -3, -4, -3, -5, -1, -2, -4, -3])
CLOZE = FileTask("cloze", [Example("a", (word,), 0, " ") for word in ("one", "two", "three")])


def test_choices_by_likelihood_and_per_character() -> None:
    found = file_task_metrics(CHOICES, LOG_LIKELIHOODS, np.zeros(9, bool))
    assert (found["acc"], found["acc_norm"], found["num_examples"]) == (0.5, 0.5, 4)
    assert found["acc_stderr"] == pytest.approx(math.sqrt(0.25 / 3))
    assert found["chance"] == pytest.approx((0.5 + 1 / 3 + 0.5 + 0.5) / 4)
    assert found["bits_per_byte"] == pytest.approx((2 + 3 + 2 + 4) / math.log(2) / (2 + 3 + 2 + 4))
    assert "perplexity" not in found


def test_a_cloze_by_greedy_decoding_and_perplexity() -> None:
    found = file_task_metrics(CLOZE, np.array([-1.0, -2, -6]), np.array([True, False, False]))
    assert (found["acc"], found["num_examples"]) == (pytest.approx(1 / 3), 3)
    assert found["acc_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
    assert found["perplexity"] == pytest.approx(math.exp(3))
    assert found["bits_per_byte"] == pytest.approx(9 / math.log(2) / 11)
    assert {"acc_norm", "chance"} & set(found) == set()


def test_one_example_has_no_standard_error_and_huge_losses_no_overflow() -> None:
    found = file_task_metrics(FileTask("t", CLOZE.examples[:1]), np.array([-5000.0]), np.array([False]))
    assert "acc_stderr" not in found
    assert found["perplexity"] == math.exp(700)


def test_a_model_with_nan_has_no_scores() -> None:
    found = file_task_metrics(CHOICES, np.where(np.arange(9) == 4, np.nan, LOG_LIKELIHOODS), np.zeros(9, bool))
    assert {name for name, value in found.items() if not math.isnan(value)} == {"num_examples"}
