"""Check texts against the grammar: well-formed sentences, consistent facts, and sentences copied from other texts."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from small_world.grammar import NOTHING, Form, World, pieces_of
from small_world.limit import joint_facts
from small_world.reading import story_readings


@dataclass(frozen=True)
class CheckedText:
    """The sentences of a text (headline included), which are well formed, and whether it is a story of the world."""

    sentences: list[str]
    well_formed: list[bool]
    is_consistent: bool


class Checker:
    """Check texts against the grammar of a world.

    A sentence is well formed if it matches a template with any possible values of its facts. A text is consistent if
    the grammar can generate all of it: its sentences belong together, and sums, days and names agree.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def check(self, text: str) -> CheckedText:
        """Check one text."""
        sentences = sentences_of(text)
        well_formed = [self._pattern.fullmatch(sentence) is not None for sentence in sentences]
        return CheckedText(sentences, well_formed, bool(story_readings(self._world, text)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The pattern of all well-formed sentences."""
        found = [pattern for _, form, _ in self._world.forms() for pattern in _patterns_of(form)]
        return re.compile("|".join(dict.fromkeys(found)))


@dataclass(frozen=True)
class SampleMetrics:
    """Shares of the sentences (headlines included) and of the stories of a model; `copied` are known sentences."""

    num_stories: int
    num_sentences: int
    well_formed: float
    consistent: float
    copied: float


def sample_metrics(checker: Checker, stories: Sequence[str], known_sentences: Collection[str]) -> SampleMetrics:
    """Metrics of one or more stories; sentences among `known_sentences` count as copied."""
    found = [checker.check(story) for story in stories]
    sentences = [sentence for one in found for sentence in one.sentences]
    return SampleMetrics(
        num_stories=len(stories),
        num_sentences=len(sentences),
        well_formed=sum(sum(one.well_formed) for one in found) / max(len(sentences), 1),
        consistent=sum(one.is_consistent for one in found) / len(stories),
        copied=copied_share(stories, known_sentences),
    )


def copied_share(stories: Sequence[str], known_sentences: Collection[str]) -> float:
    """The share of sentences that are among the known ones."""
    sentences = [sentence for story in stories for sentence in sentences_of(story)]
    return sum(sentence in known_sentences for sentence in sentences) / max(len(sentences), 1)


def sentences_of(text: str) -> list[str]:
    r"""The headline and the sentences of a text.

    >>> sentences_of("Rain for Arlen\n\nIt rains. Roads are wet.")
    ['Rain for Arlen', 'It rains.', 'Roads are wet.']
    """
    paragraphs = [paragraph for paragraph in text.split("\n") if paragraph.strip()]
    return [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=\.) ", paragraph)]


def _patterns_of(form: Form) -> Iterator[str]:
    values = {name: sorted({str(facts[name]) for facts, _ in joint_facts(form, [name])}) for name in form.facts}
    for part in form.parts:
        for template in part:
            if template != NOTHING:
                yield "".join(
                    f"(?:{'|'.join(map(re.escape, values[piece.text]))})" if piece.is_fact else re.escape(piece.text)
                    for piece in pieces_of(0, template)
                )
