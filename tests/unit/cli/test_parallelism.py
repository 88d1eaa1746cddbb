import re

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.parallelism import ELSEWHERE, PARALLELISM, WHERE
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR


def test_the_page_that_answers_name_is_there() -> None:
    page = (PROJECT_DIR / WHERE).read_text()
    for project in re.findall(r"torchtitan|Megatron-LM", ELSEWHERE):
        assert project in page


@pytest.mark.parametrize(
    "words",
    [
        ["--tensor_parallel_size", "2"],
        ["--tensor-model-parallel-size=8", "--pipeline-model-parallel-size=4"],
        ["--tp", "2", "--pp", "2", "--ep", "2"],
    ],
)
def test_each_is_answered_in_one_line_that_says_what_to_do(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_pretrain_arguments("", words)
    problems = caught.value.problems
    assert len(problems) == sum(word.startswith("--") for word in words)
    for problem in problems:
        assert "\n" not in problem
        assert "not available: " in problem
        assert "; remove it (" in problem
        assert WHERE in problem


def test_a_name_has_one_answer_in_all_programs() -> None:
    """`test_synonyms` allows one in each."""
    names = [name for some, _ in PARALLELISM for name in some.split()]
    assert len(names) == len(set(names))
