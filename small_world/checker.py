"""Judge any text as a story of the world: which sentences are well formed, and do its facts agree."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from small_world.grammar import NOTHING, Form, World, pieces_of
from small_world.limit import joint_facts
from small_world.reading import story_readings


@dataclass(frozen=True)
class Judgement:
    """A text's sentences, headline included, which of them are well formed, and whether it is a story of the world."""

    sentences: list[str]
    well_formed: list[bool]
    is_consistent: bool


class Checker:
    """Judges texts by a world's grammar.

    A sentence is well formed if a template tells it, whatever values its facts have of those that they can have. A text
    is consistent if the grammar tells all of it: its sentences belong together, and sums, days and names agree.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def judge(self, text: str) -> Judgement:
        """What a text is."""
        sentences = sentences_of(text)
        well_formed = [self._pattern.fullmatch(sentence) is not None for sentence in sentences]
        return Judgement(sentences, well_formed, bool(story_readings(self._world, text)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """What every sentence matches that some template tells."""
        found = [pattern for _, form, _ in self._world.forms() for pattern in _patterns_of(form)]
        return re.compile("|".join(dict.fromkeys(found)))


@dataclass(frozen=True)
class SampleMetrics:
    """What a model's stories are like: shares of the sentences, headlines included, and of the stories."""

    num_stories: int
    num_sentences: int
    well_formed: float
    consistent: float
    copied: float


def sample_metrics(checker: Checker, stories: Sequence[str], known_sentences: Collection[str]) -> SampleMetrics:
    """The figures of one or more stories; those of `known_sentences` that stand there again are copied."""
    found = [checker.judge(story) for story in stories]
    sentences = [sentence for judgement in found for sentence in judgement.sentences]
    return SampleMetrics(
        num_stories=len(stories),
        num_sentences=len(sentences),
        well_formed=sum(sum(judgement.well_formed) for judgement in found) / max(len(sentences), 1),
        consistent=sum(judgement.is_consistent for judgement in found) / len(stories),
        copied=copied_share(stories, known_sentences),
    )


def copied_share(stories: Sequence[str], known_sentences: Collection[str]) -> float:
    """The share of the sentences of stories that stand word for word among known ones."""
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
