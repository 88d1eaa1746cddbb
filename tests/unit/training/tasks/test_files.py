"""Files of tasks: both kinds, every mistake with its line and remedy, all files at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretraining.errors import UserError
from pretraining.training.tasks import files as module
from pretraining.training.tasks.files import Example, FileTask, HarnessTask, read_tasks

CHOICE: dict[str, Any] = {"context": "The sky is", "choices": ["green", "blue"], "answer": 1}
CLOZE: dict[str, Any] = {"context": "Once upon a", "completion": "time"}


def write(path: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def problems_of(*words: object) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_tasks([str(word) for word in words], flag="--eval_tasks")
    return caught.value.problems


def test_both_kinds_are_read_and_named(tmp_path: Path) -> None:
    question = {"question": "Wo?", "choices": ["da", "dort", "hier"], "answer": 2, "id": 7}
    choices = write(tmp_path / "sky.v2.jsonl", CHOICE, "", question)
    cloze = write(tmp_path / "words.json", CLOZE)
    sky, words = read_tasks([str(choices), f"lambada={cloze}"], flag="--eval_tasks")
    assert isinstance(sky, FileTask)
    assert isinstance(words, FileTask)
    assert (sky.name, sky.is_cloze, words.name, words.is_cloze) == ("sky", False, "lambada", True)
    assert sky.examples[1] == Example("Wo?", ("da", "dort", "hier"), 2, " ")
    assert list(sky.examples[0].texts()) == [("The sky is", " green"), ("The sky is", " blue")]
    assert words.examples == [Example("Once upon a", ("time",), 0, " ")]


@pytest.mark.parametrize(
    ("context", "choices", "extra", "texts"),
    [
        ("a", ["b", "c"], {}, ["a b", "a c"]),
        ("a ", ["b", "c"], {}, ["a b", "a c"]),
        ("a\n", ["b", "c"], {}, ["a\nb", "a\nc"]),
        ("a", [" b", "\nc"], {}, ["a b", "a\nc"]),
        ("", ["b", "c"], {}, ["b", "c"]),
        ("天空是", ["蓝色的", "绿色的"], {"delimiter": ""}, ["天空是蓝色的", "天空是绿色的"]),
        ("a ", ["b", "c"], {"delimiter": "- "}, ["a - b", "a - c"]),
    ],
)
def test_one_space_joins_unless_there_is_one(
    context: str, choices: list[str], extra: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "t.jsonl", {"context": context, "choices": choices, "answer": 0, **extra})
    (task,) = read_tasks([str(path)], flag="--eval_tasks")
    assert isinstance(task, FileTask)
    assert ["".join(text) for text in task.examples[0].texts()] == texts


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "it is a list, not an object"),
        ({**CHOICE, "choices": "ab"}, "choices is a string, not a list"),
        ({**CHOICE, "choices": ["a", 1]}, "choices.1 is a whole number, not a string"),
        ({**CHOICE, "answer": "1"}, "answer is a string, not a whole number"),
        ({**CHOICE, "answer": 2}, "answer 2 is not the number of a choice; use 0 to 1"),
        ({**CHOICE, "answer": -1}, "answer -1 is not the number of a choice; use 0 to 1"),
        ({"context": "a", "choices": ["b", "c"]}, "answer is missing; add the number"),
        ({**CHOICE, "choices": [], "answer": 0}, "has 0 choices; use 2 or more"),
        ({**CHOICE, "choices": ["a"], "answer": 0}, "has 1 choices; use 2 or more"),
        ({**CHOICE, "choices": ["a", ""], "answer": 0}, "a choice or completion is empty"),
        ({**CLOZE, "completion": ""}, "a choice or completion is empty"),
        ({"choices": ["a", "b"], "answer": 0}, "needs one context, and choices or a completion; use {"),
        ({**CHOICE, "question": "a"}, "needs one context, and choices or a completion; use {"),
        ({**CHOICE, "completion": "a"}, "needs one context, and choices or a completion; use {"),
        ({"context": "a"}, "needs one context, and choices or a completion; use {"),
    ],
    ids=str,
)
def test_a_line_that_is_wrong_is_named_with_the_remedy(record: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", CHOICE, record)
    (problem,) = problems_of(path)
    assert problem.startswith(f"--eval_tasks {path}: line 2: ")
    assert message in problem


def test_problems_of_all_files_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = write(tmp_path / "mixed.jsonl", CHOICE, CLOZE)
    bad = write(tmp_path / "bad.jsonl", *["{"] * 1000)
    empty = write(tmp_path / "empty.jsonl", "", " ")
    fine, other = write(tmp_path / "fine.jsonl", CHOICE), write(tmp_path / "other.jsonl", CHOICE)
    (tmp_path / "latin.jsonl").write_bytes(b'{"context": "\xe9"}\n')
    words = [mixed, bad, empty, tmp_path / "latin.jsonl", tmp_path / "nope.jsonl", tmp_path, fine, f"fine={other}"]
    problems = "\n".join(problems_of(*words))
    assert f"{mixed}: has both choices and completions; use one file for each" in problems
    assert f"{bad}: line 1: not JSON" in problems
    assert "(999 more in this file)" in problems
    assert "line 2" not in problems
    assert f"{empty}: has no example; use {{" in problems
    assert "latin.jsonl: line 1: not UTF-8" in problems
    assert "nope.jsonl: file not found" in problems
    assert f"{tmp_path}: not a regular file" in problems
    (problem,) = problems_of("a" * 5000)
    assert problem == f"--eval_tasks {'a' * 80}...: cannot be read (File name too long); check the file"
    assert "--eval_tasks fine: names 2 tasks; name them by NAME=FILE" in problems
    (problem,) = problems_of(write(tmp_path / "a b.jsonl", CHOICE))
    assert "its name is not of letters, digits, - and _; pass NAME=FILE" in problem
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    (problem,) = problems_of(fine)
    assert "is larger than 1 GiB" in problem


def test_other_words_are_tasks_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "held_out.yaml", "task: held_out")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: object())
    found = read_tasks([str(path), "hellaswag", "x=arc_easy"], flag="--eval_tasks")
    assert found == [
        HarnessTask("held_out", str(path)),
        HarnessTask("hellaswag", "hellaswag"),
        HarnessTask("x", "arc_easy"),
    ]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    (problem,) = problems_of("hellaswag")
    assert "hellaswag: is a task of lm-evaluation-harness, which is not installed; install lm_eval, or pass" in problem
