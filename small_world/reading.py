"""Parse a text: the ways to generate it, their probabilities, and what may follow it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from small_world.grammar import Form, Piece, World, pieces_of

END = -1  # follows a complete story


@dataclass(frozen=True)
class Reading:
    """One way to generate a UTF-8 text as the beginning of a story, and the probability of its choices.

    `position` bytes are parsed. `next_byte` follows the text in this reading: None while text is left, `END` after a
    complete story.
    """

    source: str
    probability: float
    position: int
    facts: dict[str, Any]
    next_byte: int | None = None


def readings(world: World, text: bytes) -> Iterator[Reading]:
    """All ways to generate `text` as a story or its beginning."""
    for source, form, probability in world.forms():
        yield from _read_parts(form, text, Reading(source, probability, 0, {}), number=0)


def story_readings(world: World, text: str) -> list[Reading]:
    """The ways to generate `text` as a complete story: one for a story of this world, none for any other text."""
    return [reading for reading in readings(world, text.encode()) if reading.next_byte == END]


def next_bytes(world: World, text: bytes) -> dict[int, float]:
    """The probability of each byte (or `END`) after the beginning of a story; empty for any other text."""
    found: defaultdict[int, float] = defaultdict(float)
    for reading in readings(world, text):
        assert reading.next_byte is not None
        found[reading.next_byte] += reading.probability
    total = sum(found.values())
    return {byte: probability / total for byte, probability in found.items()}


def _read_parts(form: Form, text: bytes, reading: Reading, *, number: int) -> Iterator[Reading]:
    """Parse from part `number` of a form."""
    if reading.next_byte is not None:
        yield reading
    elif number > len(form.sentences):
        if reading.position == len(text):
            yield replace(reading, next_byte=END)
    else:
        for template, share in form.parts[number].items():
            started = replace(reading, probability=reading.probability * share)
            for read in _read_pieces(form, text, started, pieces_of(number, template)):
                yield from _read_parts(form, text, read, number=number + 1)


def _read_pieces(form: Form, text: bytes, reading: Reading, pieces: list[Piece]) -> Iterator[Reading]:
    """Parse pieces up to their end or that of the text."""
    if not pieces or reading.next_byte is not None:
        yield reading
        return
    piece, rest = pieces[0], pieces[1:]
    for value, probability in _law(form, piece, reading).items():
        shown = str(value).encode()
        end = min(reading.position + len(shown), len(text))
        num_read = end - reading.position
        if text.startswith(shown[:num_read], reading.position):
            read = replace(
                reading,
                probability=reading.probability * probability,
                position=end,
                facts={**reading.facts, piece.text: value} if piece.is_fact else reading.facts,
                next_byte=None if num_read == len(shown) else shown[num_read],
            )
            yield from _read_pieces(form, text, read, rest)


def _law(form: Form, piece: Piece, reading: Reading) -> dict[Any, float]:
    if not piece.is_fact:
        return {piece.text: 1.0}
    if piece.text in reading.facts:
        return {reading.facts[piece.text]: 1.0}
    return form.law(piece.text, reading.facts)
