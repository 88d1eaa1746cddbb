"""The grammar: templates, facts and their possible values, and how a story is generated from them."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from string import Formatter
from typing import Any

NOTHING = ""  # the template of an omitted sentence
Facts = Mapping[str, Any]
Law = dict[Any, float]  # the probability of each value
Possible = Callable[..., Iterable[Any]]  # from the facts that are its parameters to the possible values


@dataclass(frozen=True)
class Piece:
    """A piece of a template: literal text, or the name of a fact."""

    text: str
    is_fact: bool


@dataclass(frozen=True, eq=False)
class Form:
    """One form of story: a headline, then one template of each list of `sentences`, `NOTHING` for none.

    A fact is drawn where a template names it first, from its values in `facts`, and keeps its value. The entries of a
    list are equally likely, so that a repeated entry is twice as likely. A fact depends on the facts that are the
    parameters of its function; each of them must have been named before.
    """

    facts: Mapping[str, Possible]
    headlines: Sequence[str]
    sentences: Sequence[Sequence[str]]
    _laws: dict[Hashable, Law] = field(default_factory=dict)

    @cached_property
    def parts(self) -> list[Law]:
        """The templates of each part (headline first) and their probabilities."""
        return [law_of(part) for part in (self.headlines, *self.sentences)]

    def parents(self, name: str) -> tuple[str, ...]:
        """The facts that a fact depends on."""
        return parameters(self.facts[name])

    def law(self, name: str, facts: Facts) -> Law:
        """The distribution of a fact, given the facts it depends on; `KeyError` if one of them is missing."""
        given = tuple(facts[parent] for parent in self.parents(name))
        key = (name, given)
        if key not in self._laws:
            self._laws[key] = law_of(self.facts[name](*given))
        return self._laws[key]


class World:
    """Sources, equally likely, and the forms of each, equally likely."""

    def __init__(self, sources: Mapping[str, Sequence[Form]]) -> None:
        self.sources = dict(sources)

    def forms(self) -> Iterator[tuple[str, Form, float]]:
        """Each form with its source and its probability."""
        for source, forms in self.sources.items():
            for form in forms:
                yield source, form, 1 / len(self.sources) / len(forms)

    def draw(self, generator: random.Random) -> tuple[str, str]:
        """Generate a story: source and text."""
        source, forms = generator.choice(list(self.sources.items()))
        return source, draw_story(generator.choice(forms), generator)


def draw_story(form: Form, generator: random.Random) -> str:
    """Generate a story of this form."""
    templates = [_drawn(part, generator) for part in form.parts]
    return fill_templates(form, templates, generator)


def fill_templates(form: Form, templates: Sequence[str], generator: random.Random) -> str:
    """The story of these templates, one per part of the form, with facts that are drawn."""
    facts: dict[str, Any] = {}
    words = []
    for number, template in enumerate(templates):
        for piece in pieces_of(number, template):
            if piece.is_fact and piece.text not in facts:
                facts[piece.text] = _drawn(form.law(piece.text, facts), generator)
            words.append(str(facts[piece.text]) if piece.is_fact else piece.text)
    return "".join(words)


@cache
def pieces_of(number: int, template: str) -> list[Piece]:
    """The pieces of a template that is part `number` of a story, with the separator from the part before."""
    if template == NOTHING:
        return []
    found = [Piece(["", "\n\n", " "][min(number, 2)], is_fact=False)]
    for text, name, _, _ in Formatter().parse(template):
        found.append(Piece(text, is_fact=False))
        if name is not None:
            found.append(Piece(name, is_fact=True))
    return [piece for piece in found if piece.text]


@cache
def parameters(function: Possible) -> tuple[str, ...]:
    """The names of a function's parameters."""
    return tuple(signature(function).parameters)


def law_of(values: Iterable[Any]) -> Law:
    """The probability of each value of a list with equally likely entries.

    >>> law_of("aab")
    {'a': 0.6666666666666666, 'b': 0.3333333333333333}
    """
    counts = Counter(values)
    return {value: count / counts.total() for value, count in counts.items()}


def _drawn(law: Law, generator: random.Random) -> Any:
    return generator.choices(list(law), list(law.values()))[0]
