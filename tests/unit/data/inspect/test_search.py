"""A text is found in every block that has it or a part of it, wherever blocks cut it."""

import random

import numpy as np
import pytest

from pretraining.cli.progress import Progress
from pretraining.data.encode.splits import SPLITS
from pretraining.data.inspect.provenance import Piece
from pretraining.data.inspect.search import find_text
from tests.unit.data.inspect.conftest import ODD_TEXTS, STORIES, Traced

Found = set[tuple[Piece, int]]


def by_brute_force(traced: Traced, wanted: str) -> Found:
    """Each piece with `wanted` or a part of it and the first token of that, from texts and tokens' characters alone."""
    first: dict[Piece, int] = {}
    for text, owner in traced.documents:
        _, characters = traced.encodings[text]
        at = -1
        while (at := text.find(wanted, at + 1)) >= 0:
            tokens = np.flatnonzero((characters[:, 0] < at + len(wanted)) & (characters[:, 1] > at)).tolist()
            if all(token in owner for token in tokens):
                for piece, position in map(owner.__getitem__, tokens):
                    first[piece] = min(first.get(piece, position), position)
    return set(first.items())


def by_search(traced: Traced, wanted: str) -> Found:
    hits = list(find_text(traced.tracer, SPLITS, wanted, progress=Progress(1), num_workers=2))
    assert len({hit.piece for hit in hits}) == len(hits), "a piece is told twice"
    return {(hit.piece, hit.position) for hit in hits}


def wanted_texts(traced: Traced) -> list[str]:
    odd = ["</s>", "<s>", "<unk>", "🚆", "🚆🚆", "👩\u200d👩", "電車", "aaab", "a" * 300, "  ", "\n\n", " ", "e"]
    starts = [start for text in ODD_TEXTS + STORIES[:2] for start in (text[:12], " " + text[:12])]
    generator = random.Random(7)
    parts = []
    for length in (2, 3, 7, 20, 60, 200, 500, 2000):
        for text in generator.sample(sorted(traced.texts.values()), 2):
            begin = generator.randrange(max(1, len(text) - length))
            parts.append(text[begin : begin + length])
    return [*odd, *starts, *parts, "in no text of these", "\ufffd"]


@pytest.mark.guarantee("A text is found in every block that contains it.")
def test_a_text_is_found_wherever_it_is_and_nowhere_else(traced: Traced) -> None:
    num_over_cuts = 0
    for wanted in wanted_texts(traced):
        expected = by_brute_force(traced, wanted)
        assert by_search(traced, wanted) == expected, wanted
        num_over_cuts += len(expected) > 1
    assert num_over_cuts > 10  # of 45 texts; 13 in the sample corpus, which has none of the odd ones


def test_each_pair_of_blocks_is_found_by_the_text_over_its_cut(traced: Traced) -> None:
    continued = [piece for piece in traced.pieces if piece.num_tokens_before > 3]
    for piece in continued[:: max(1, len(continued) // 25)]:
        text = traced.text_of(piece.document_id)
        _, characters = traced.encodings[text]
        cut = characters[piece.num_tokens_before][0]
        wanted = text[max(0, cut - 9) : cut + 5]
        assert by_search(traced, wanted) == by_brute_force(traced, wanted), wanted
