"""The tasks of recipes/quickstart: by the grammar, only the right choice can follow, and a completion must."""

import pytest

from pretraining.training.tasks.files import FileTask, read_tasks
from small_world import WORLD
from small_world.reading import next_bytes
from tests.conftest import PROJECT_DIR

RECIPE = PROJECT_DIR / "recipes/quickstart"


def can_begin_a_story(text: str) -> bool:
    return bool(next_bytes(WORLD, text.encode()))


@pytest.fixture(scope="module")
def tasks() -> tuple[FileTask, ...]:
    found = read_tasks([str(RECIPE / f"{name}.jsonl") for name in ("recall", "recall_words")], flag="--eval_tasks")
    return tuple(task for task in found if isinstance(task, FileTask))


def test_only_the_right_choice_can_follow(tasks: tuple[FileTask, ...]) -> None:
    recall, _ = tasks
    assert len({example.context for example in recall.examples}) == len(recall.examples) == 200
    assert [sum(example.answer == number for example in recall.examples) > 30 for number in range(4)] == [True] * 4
    for example in recall.examples:
        possible = [can_begin_a_story("".join(text)) for text in example.texts()]
        assert [number for number, is_possible in enumerate(possible) if is_possible] == [example.answer]


def test_a_completion_must_follow(tasks: tuple[FileTask, ...]) -> None:
    _, words = tasks
    assert len({example.context for example in words.examples}) == len(words.examples) == 200
    for example in words.examples:
        text = f"{example.context} ".encode()
        for byte in example.choices[0].encode():
            assert next_bytes(WORLD, text).get(byte, 0) == pytest.approx(1)
            text += bytes([byte])
