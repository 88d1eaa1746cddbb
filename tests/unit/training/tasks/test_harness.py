"""Tasks of lm-evaluation-harness by its own rules: from local files they have the metrics of the same examples here."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError
from pretraining.training.tasks.encoding import encode_tasks
from pretraining.training.tasks.files import HarnessTask, read_tasks
from tests.conftest import PROJECT_DIR
from tests.fakes.harness_task import write_task

CHOICES = [
    {
        "context": f"The answer of question {number} is",
        "choices": [f"{number + 1} men", "one", f"{number}"],
        "answer": 2,
    }
    for number in range(11)
]
CLOZE = [{"context": f"It is {number} o'", "completion": "clock"} for number in range(7)]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed (pip install -c requirements.lock -c requirements-extras.txt lm_eval)",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")


@pytest.mark.parametrize(("kind", "records"), [("multiple_choice", CHOICES), ("loglikelihood", CLOZE)])
def test_local_tasks_have_the_requests_and_metrics_of_the_same_examples(
    kind: str, records: list[dict], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    paths = write_task(tmp_path, "local", kind, records)
    tasks = read_tasks([f"{name}={path}" for name, path in zip(("ours", "theirs"), paths, strict=True)], flag="--tasks")
    ours, theirs = encode_tasks(tasks, tokenizer, num_positions=64, flag="--tasks")
    assert theirs.name == "theirs"
    assert [request.ids.tolist() for request in theirs.requests] == [request.ids.tolist() for request in ours.requests]
    assert [one.num_context_tokens for one in theirs.requests] == [one.num_context_tokens for one in ours.requests]
    generator = np.random.default_rng(0)
    for _ in range(3):  # at each evaluation of a run
        log_likelihoods = -10 * generator.random(len(ours.requests))
        are_greedy = generator.random(len(ours.requests)) < 0.5
        found, expected = theirs.metrics(log_likelihoods, are_greedy), ours.metrics(log_likelihoods, are_greedy)
        assert set(expected) - set(found) <= {"chance", "bits_per_byte"}
        assert found == {name: pytest.approx(expected[name]) for name in found}


def test_tasks_that_cannot_be_scored_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    _, path = write_task(tmp_path, "written", "generate_until", CLOZE)
    with pytest.raises(UserError, match="generate_until is not supported; use a task of multiple_choice or logl"):
        encode_tasks([HarnessTask("written", str(path))], tokenizer, num_positions=64, flag="--tasks")
    with pytest.raises(UserError, match=r"--tasks no_such_task: the task cannot be read .* check its name or file"):
        encode_tasks([HarnessTask("x", "no_such_task")], tokenizer, num_positions=64, flag="--tasks")


def test_every_process_draws_the_same_few_shot_examples(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Without a seed, 11 examples with 2 of 10 others each are equal by chance once in 1e21 times."""
    _, path = write_task(tmp_path, "shots", "multiple_choice", CHOICES)
    path.write_text(path.read_text() + "num_fewshot: 2\nfewshot_split: test\n")
    found = []
    for seed in (1, 2):  # as on two processes
        random.seed(seed)
        (task,) = encode_tasks([HarnessTask("shots", str(path))], tokenizer, num_positions=64, flag="--tasks")
        found.append([request.ids.tolist() for request in task.requests])
        state = random.getstate()
        random.seed(seed)
        assert random.getstate() == state, "that of the run is unchanged"
    assert found[0] == found[1]
