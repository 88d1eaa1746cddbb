"""Metrics of tasks, reckoned by hand from log-likelihoods."""

import math

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError
from pretraining.training.tasks import metrics
from pretraining.training.tasks.files import Example, FileTask
from pretraining.training.tasks.metrics import check_same_requests, encode_tasks, task_metrics
from pretraining.training.tasks.requests import Request, TaskRequests
from tests.conftest import PROJECT_DIR

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
    found = task_metrics(CHOICES, LOG_LIKELIHOODS, np.zeros(9, bool))
    assert (found["acc"], found["acc_norm"], found["num_examples"]) == (0.5, 0.5, 4)
    assert found["acc_stderr"] == pytest.approx(math.sqrt(0.25 / 3))
    assert found["chance"] == pytest.approx((0.5 + 1 / 3 + 0.5 + 0.5) / 4)
    assert found["bits_per_byte"] == pytest.approx((2 + 3 + 2 + 4) / math.log(2) / (2 + 3 + 2 + 4))
    assert "perplexity" not in found


def test_a_cloze_by_greedy_decoding_and_perplexity() -> None:
    found = task_metrics(CLOZE, np.array([-1.0, -2, -6]), np.array([True, False, False]))
    assert (found["acc"], found["num_examples"]) == (pytest.approx(1 / 3), 3)
    assert found["acc_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
    assert found["perplexity"] == pytest.approx(math.exp(3))
    assert found["bits_per_byte"] == pytest.approx(9 / math.log(2) / 11)
    assert {"acc_norm", "chance"} & set(found) == set()


def test_one_example_has_no_standard_error_and_huge_losses_no_overflow() -> None:
    found = task_metrics(FileTask("t", CLOZE.examples[:1]), np.array([-5000.0]), np.array([False]))
    assert "acc_stderr" not in found
    assert found["perplexity"] == math.exp(700)


def test_a_model_with_nan_has_no_scores() -> None:
    found = task_metrics(CHOICES, np.where(np.arange(9) == 4, np.nan, LOG_LIKELIHOODS), np.zeros(9, bool))
    assert {name for name, value in found.items() if not math.isnan(value)} == {"num_examples"}


def test_requests_follow_the_order_of_the_choices() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")
    choices, cloze = encode_tasks([CHOICES, CLOZE], tokenizer, num_positions=64, flag="--eval_tasks")
    assert [tokenizer.decode(request.ids) for request in cloze.requests] == ["a one", "a two", "a three"]
    assert len(choices.requests) == 9
    assert choices.metrics(LOG_LIKELIHOODS, np.zeros(9, bool)) == task_metrics(CHOICES, LOG_LIKELIHOODS, np.zeros(9))
    with pytest.raises(UserError, match=r"^--eval_tasks choices: ' bb' has "):
        encode_tasks([CHOICES], tokenizer, num_positions=0, flag="--eval_tasks")


def test_names_are_unique_once_groups_are_known() -> None:
    """A group of the harness and one of its tasks have different names on the command line."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")
    with pytest.raises(UserError, match=r"^--tasks cloze: is given 2 times; "):
        encode_tasks([CLOZE, CHOICES, CLOZE], tokenizer, num_positions=64, flag="--tasks")


def test_requests_that_differ_between_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the same ids are divided elsewhere, too."""

    def requests(name: str, *parts: tuple[list[int], int]) -> TaskRequests:
        return TaskRequests(name, [Request(np.array(ids, np.int32), number) for ids, number in parts], lambda *_: {})

    shared = requests("shared", ([1, 2, 3], 1))
    processes = [
        [shared, requests("divided", ([1, 2, 3], 1)), requests("drawn", ([1, 2], 1), ([3], 1))],
        [shared, requests("divided", ([1, 2, 3], 2)), requests("drawn", ([1, 2], 1), ([4], 1))],
    ]
    gathered: list[dict[str, str]] = []
    monkeypatch.setattr(metrics.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics, "all_gather_objects", lambda own: gathered.append(own) or gathered)
    check_same_requests(processes[0], flag="--eval_tasks")
    with pytest.raises(UserError, match=r"^--eval_tasks: the texts of divided, drawn differ between processes; "):
        check_same_requests(processes[1], flag="--eval_tasks")
