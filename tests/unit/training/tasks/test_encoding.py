"""Requests in the order of the choices, with unique names, and the same on all processes."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError
from pretraining.training.tasks import encoding
from pretraining.training.tasks.encoding import check_same_requests, encode_tasks
from pretraining.training.tasks.files import Example, FileTask
from pretraining.training.tasks.metrics import file_task_metrics
from pretraining.training.tasks.requests import Request, TaskRequests
from tests.conftest import PROJECT_DIR

CHOICES = FileTask("choices", [Example("a", ("bb", "cccc"), 0, " "), Example("a", ("b", "é"), 1, " ")])
CLOZE = FileTask("cloze", [Example("a", (word,), 0, " ") for word in ("one", "two", "three")])


def test_requests_follow_the_order_of_the_choices() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")
    choices, cloze = encode_tasks([CHOICES, CLOZE], tokenizer, num_positions=64, flag="--eval_tasks")
    assert [tokenizer.decode(request.ids) for request in cloze.requests] == ["a one", "a two", "a three"]
    assert len(choices.requests) == 4
    likelihoods = np.array([-2.0, -3, -4, -3])
    assert choices.metrics(likelihoods, np.zeros(4, bool)) == file_task_metrics(CHOICES, likelihoods, np.zeros(4))
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
    monkeypatch.setattr(encoding.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(encoding, "all_gather_objects", lambda own: gathered.append(own) or gathered)
    check_same_requests(processes[0], flag="--eval_tasks")
    with pytest.raises(UserError, match=r"^--eval_tasks: the texts of divided, drawn differ between processes; "):
        check_same_requests(processes[1], flag="--eval_tasks")
