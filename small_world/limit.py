"""The limit of what can be learned: the entropy of the stories, exactly, in bits per byte of their text.

A story is drawn by independent choices of templates, and by draws of facts, each given the facts that it depends on.
Its entropy is that of the templates plus, for every set of them, the conditional entropies of the facts that they name.
It is that of the text too, since no text can be drawn in two ways, and includes where a story ends. No model of
tokens does better, whatever its tokenizer: each text has one encoding, so the sequences have the entropy of the texts.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from small_world.grammar import Form, Law, Piece, World, pieces_of


@dataclass(frozen=True)
class Limit:
    """Bits and bytes of text that a story has on average."""

    bits: float
    num_bytes: float

    @property
    def bits_per_byte(self) -> float:
        """What the best of all models reaches."""
        return self.bits / self.num_bytes


def limits_by_source(world: World) -> dict[str, Limit]:
    """Of the stories of each source. Their bits include which source it is: nothing but the text tells a model."""
    return {
        source: _mean({form: 1 / len(forms) for form in forms}, bits_before=math.log2(len(world.sources)))
        for source, forms in world.sources.items()
    }


def limit_of(world: World) -> Limit:
    """Of all stories."""
    found = limits_by_source(world).values()
    return Limit(sum(limit.bits for limit in found) / len(found), sum(limit.num_bytes for limit in found) / len(found))


def entropy(law: Law) -> float:
    """In bits.

    >>> entropy({"a": 0.5, "b": 0.25, "c": 0.25})
    1.5
    """
    return -sum(probability * math.log2(probability) for probability in law.values())


def joint_facts(form: Form, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], float]]:
    """All values that some facts and those they depend on can have together, with their probability."""
    ordered = _with_ancestors(form, names)

    def extended(facts: dict[str, Any], probability: float) -> Iterator[tuple[dict[str, Any], float]]:
        if len(facts) == len(ordered):
            yield facts, probability
            return
        name = ordered[len(facts)]
        for value, share in form.law(name, facts).items():
            yield from extended({**facts, name: value}, probability * share)

    yield from extended({}, 1.0)


def _mean(forms: dict[Form, float], *, bits_before: float) -> Limit:
    found = [(share, form_limit(form)) for form, share in forms.items()]
    bits = sum(share * limit.bits for share, limit in found)
    num_bytes = sum(share * limit.num_bytes for share, limit in found)
    return Limit(bits_before + entropy(dict(enumerate(forms.values()))) + bits, num_bytes)


def form_limit(form: Form) -> Limit:
    """Of the stories of one form."""
    fact_bits = {name: _conditional_entropy(form, name) for name in form.facts}
    fact_bytes = {name: _mean_bytes(form, name) for name in form.facts}
    bits = sum(entropy(part) for part in form.parts)
    num_bytes = 0.0
    for pieces, probability in _told(form):
        named = {piece.text for piece in pieces if piece.is_fact}
        bits += probability * sum(fact_bits[name] for name in named)
        lengths = [fact_bytes[piece.text] if piece.is_fact else len(piece.text.encode()) for piece in pieces]
        num_bytes += probability * sum(lengths)
    return Limit(bits, num_bytes)


def _told(form: Form) -> Iterator[tuple[list[Piece], float]]:
    """The pieces of every choice of templates, with its probability."""
    for choice in itertools.product(*(part.items() for part in form.parts)):
        pieces = [piece for number, (template, _) in enumerate(choice) for piece in pieces_of(number, template)]
        yield pieces, math.prod(share for _, share in choice)


def _conditional_entropy(form: Form, name: str) -> float:
    """Of a fact, given those that it depends on."""
    return sum(share * entropy(form.law(name, facts)) for facts, share in joint_facts(form, form.parents(name)))


def _mean_bytes(form: Form, name: str) -> float:
    return sum(share * len(str(facts[name]).encode()) for facts, share in joint_facts(form, [name]))


def _with_ancestors(form: Form, names: Sequence[str]) -> list[str]:
    """Facts with those that they depend on, each after its own."""
    found: list[str] = []
    for name in names:
        found += [other for other in [*_with_ancestors(form, form.parents(name)), name] if other not in found]
    return list(dict.fromkeys(found))
