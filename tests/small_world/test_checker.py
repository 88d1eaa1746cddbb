"""Stories hold together, and the checker finds those that do not."""

import random
import re

import pytest

from small_world import WORLD
from small_world.checker import Checker, sample_metrics, sentences_of
from small_world.words import DAYS

NUM_STORIES = 2000
MATCH = "Win for Kelby\n\nThe team of Kelby beat Oxley by 3 to 1 on Saturday. "
MATCH += "Rosa Holt scored the first goal after 9 minutes."


@pytest.fixture(scope="module")
def stories() -> list[str]:
    generator = random.Random(4)
    return [WORLD.draw(generator)[1] for _ in range(NUM_STORIES)]


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker(WORLD)


def day_after(day: str, number: int) -> str:
    return DAYS[(DAYS.index(day) + number) % 7]


# Said again here, so that a slip in the tables shows.
FACTS = {
    r"beat \w+ by (\d) to (\d)": lambda high, low: int(high) > int(low),
    r"With (\d+) in favor and (\d) against, all (\d+) members": lambda a, b, c: int(a) + int(b) == int(c),
    r"rose from (\d+) to (\d+) crowns.*pay (\d+) crowns more": lambda a, b, c: int(b) - int(a) == int(c) > 0,
    r"fell from (\d+) to (\d+) crowns.*pay (\d+) crowns less": lambda a, b, c: int(a) - int(b) == int(c) > 0,
    r"(\d+) paintings and (\d+) drawings, (\d+) works": lambda a, b, c: int(a) + int(b) == int(c),
    r"hires (\d+) people\. It has (\d+) now and will then have (\d+)": lambda a, b, c: int(a) + int(b) == int(c),
    r"costs (\d+) crowns, (\d+) less for children, who pay (\d+)": lambda a, b, c: int(a) - int(b) == int(c) > 0,
    r"in (\d+) minutes\. .* was (\d+) minutes behind and came in after (\d+)": lambda a, b, c: (
        int(a) + int(b) == int(c)
    ),
    r"(?:with|from) (-?\d+) degrees (?:in the morning to|and reaches) (-?\d+)": lambda a, b: int(a) < int(b),
    r"begins on (\w+) and ends on (\w+)": lambda begin, end: day_after(begin, 2) == end,
    r"voted on (\w+) to.*The work begins on (\w+)": lambda vote, start: day_after(vote, 1) == start,
    r"storm hit \w+ on (\w+) .*Schools stay closed on (\w+)": lambda day, closed: day_after(day, 1) == closed,
    r"^Win for (\w+)\n\nThe team of (\w+) beat (\w+) by": lambda winner, again, loser: winner == again != loser,
    r"(?:Anna|Mira|Zoë) \w+ plays [^.]*\. (She|He) will perform": lambda she: she == "She",
    r"(?:Boris|Nils|Émile) \w+ plays [^.]*\. (She|He) will perform": lambda he: he == "He",
}


@pytest.mark.parametrize("pattern", FACTS)
def test_facts_agree(stories: list[str], pattern: str) -> None:
    found = [match.groups() for story in stories if (match := re.search(pattern, story, re.DOTALL))]
    assert len(found) > 3
    assert [groups for groups in found if not FACTS[pattern](*groups)] == []


def test_the_worlds_own_stories_are_right(stories: list[str], checker: Checker) -> None:
    for story in stories[:300]:
        checked = checker.check(story)
        assert all(checked.well_formed), checked
        assert checked.is_consistent
        assert 3 <= len(checked.sentences) <= 7, "a headline and two to six sentences"


@pytest.mark.parametrize(
    ("change", "well_formed", "is_consistent"),
    [
        (("", ""), [True, True, True], True),
        (("of Kelby", "of Ister"), [True, True, True], False),
        (("3 to 1", "2 to 3"), [True, True, True], False),
        (("3 to 1", "7 to 1"), [True, False, True], False),
        (("on Saturday", "in Saturday"), [True, False, True], False),
        (("9 minutes.", "9"), [True, True, False], False),
        ((". Rosa", ". It will cost 9 crowns. Rosa"), [True, True, False, True], False),
        ((". Rosa", ".\nRosa"), [True, True, True], False),
    ],
)
def test_what_is_wrong_is_found(
    checker: Checker, change: tuple[str, str], well_formed: list[bool], is_consistent: bool
) -> None:
    checked = checker.check(MATCH.replace(*change))
    assert checked.well_formed == well_formed
    assert checked.is_consistent == is_consistent


def test_the_figures_are_shares_of_sentences_and_of_stories(checker: Checker) -> None:
    wrong = MATCH.replace("Saturday", "Caturday")
    figures = sample_metrics(checker, [MATCH, wrong, "", "x"], set(sentences_of(MATCH)[:2]))
    assert (figures.num_stories, figures.num_sentences) == (4, 7)
    assert figures.well_formed == 5 / 7
    assert figures.consistent == 1 / 4
    assert figures.copied == 3 / 7
