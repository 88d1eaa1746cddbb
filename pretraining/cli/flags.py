"""A flag: its name, type, default and help, read from a dataclass, and its value read from text.

The text is the same on the command line and in a recipe, so one reader checks both.
"""

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretraining.cli.ranges import FINITE, RANGES, Range
from pretraining.cli.synonyms import remedy_of
from pretraining.errors import nearest, raise_problems, shortened

HIDDEN = argparse.SUPPRESS  # as the help text of a flag that --help does not show
GENERIC_FLAG = "trainer_arguments"  # see arguments/trainer.py
TRUE_WORDS = ("true", "yes", "1")
FALSE_WORDS = ("false", "no", "0")
NONE_WORD = "none"
# What to use instead of a word that is a choice elsewhere.
CHOICE_HINTS = {
    (f"{what}_strategy", "epoch"): f"; epochs follow each other without an end here: use steps and --{what}_steps N"
    for what in ("eval", "save", "logging")
}
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", dict: "a JSON object"}


# Flags that exclude each other: one on the command line replaces the others of a recipe.
EXCLUSIVE = (
    ("global_batch_tokens", "global_batch_blocks"),
    ("max_tokens", "max_steps", "num_train_epochs"),
    ("dataset", "phases"),
)
EXCLUDED_BY = {name: tuple(other for other in names if other != name) for names in EXCLUSIVE for name in names}


class Setting(NamedTuple):
    """The words of one flag, and their place: the flag itself, or a line of a recipe."""

    place: str
    name: str
    texts: list[str]


def exclusion_problems(given: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with flags that were given together, by their words.

    >>> exclusion_problems({"num_train_epochs": ["3"], "max_steps": ["10"], "seed": ["1"]})
    ['--max_steps 10 --num_train_epochs 3: exclude each other; keep one']
    """
    words = {name: shortened(" ".join(" ".join(texts).split())) for name, texts in given.items()}
    found = ([f"--{name} {words[name]}" for name in names if name in words] for names in EXCLUSIVE)
    return [f"{' '.join(some)}: exclude each other; keep one" for some in found if some[1:]]


def flag_problem(name: str, names: Iterable[str], rejected: Mapping[str, str]) -> str:
    """What is wrong with a name that is not in `names`: a reason of `rejected`, or a suggestion."""
    plain, known = name.replace("-", "_"), list(names)
    if plain in rejected:
        return rejected[plain]
    remedy = remedy_of(name, known)
    if remedy is not None:
        return _as_hint(remedy)
    others = f"; pass other fields of the Trainer by --{GENERIC_FLAG} NAME=VALUE" if GENERIC_FLAG in known else ""
    return f"unknown flag{nearest(plain, known)}{others}"


def _as_hint(remedy: str) -> str:
    if remedy.startswith("not available"):
        return remedy
    if not remedy.startswith("--"):
        return f"unknown flag; {remedy}"
    return f"unknown flag; use {remedy}" if " " in remedy else f"unknown flag (did you mean {remedy[2:]}?)"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a program.

    `is_text`: its words are texts, which may be blank, not names or paths. `adds_up`: of a list; when the flag is given
    again, its values are added to the earlier ones, which `none` removes. `read` reads a word of another kind; its
    `ValueError` has an argument for each problem.
    """

    name: str
    value_type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()  # of a text; of a number, words that may take its place
    is_list: bool = False
    is_optional: bool = False
    is_text: bool = False
    adds_up: bool = False
    read: Callable[[str], Any] | None = None

    @property
    def range(self) -> Range | None:
        """The range of a number, which must be finite at least; None of anything else."""
        return RANGES.get(self.name, FINITE) if self.value_type in (int, float) else None

    def range_problems(self, texts: Sequence[str], value: Any) -> list[str]:
        """What is wrong with the numbers that `texts` were read as: each text with the range it must be in."""
        if self.range is None or value is None or value in self.choices:
            return []
        numbers = value if self.is_list else [value]
        problems = [(text, self.range.problem(number)) for text, number in zip(texts, numbers, strict=True)]
        return [f"{shortened(text)}: {problem}" for text, problem in problems if problem is not None]

    def value(self, texts: Sequence[str]) -> Any:
        """The flag's value from its words; `ValueError` with the expectation when they do not fit."""
        if list(texts) == [NONE_WORD] and (self.is_optional or self.adds_up):
            return None if self.is_optional else []
        if self.is_list:
            if not texts:
                raise ValueError("expects at least one value")
            return [self._single(text) for text in texts]
        if not texts and self.value_type is bool:
            return True
        if len(texts) != 1:
            raise ValueError(f"expects one value, not {len(texts)}: {' '.join(texts)}".removesuffix(": "))
        return self._single(texts[0])

    def _single(self, text: str) -> Any:
        if self.read is not None:
            return self.read(text)
        if text in self.choices:
            return text
        if self.choices and self.value_type is str:
            hint = CHOICE_HINTS.get((self.name, text)) or nearest(text, self.choices)
            raise ValueError(f"{shortened(text)!r} is not one of {', '.join(self.choices)}{hint}")
        if self.value_type in (str, Path):
            _check_word(text, is_text=self.is_text)
        try:
            if self.value_type in (int, float) and not text.isascii():  # Python reads the digits of all scripts
                raise ValueError(text)
            return READERS.get(self.value_type, self.value_type)(text)
        except (ValueError, RecursionError):
            expected = " or ".join((TYPE_NAMES.get(self.value_type, self.value_type.__name__), *self.choices))
            raise ValueError(f"expects {expected}, not {shortened(text)!r}") from None


def _check_word(text: str, *, is_text: bool) -> None:
    """Reject words that are never intended: an unset variable of a shell, and characters that no file name has."""
    if not is_text and not text.strip():
        raise ValueError(f"expects a path or name, not {shortened(text)!r} (is a variable of the command unset?)")
    # A half of a surrogate pair: some of its bytes on the command line were not UTF-8.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"expects UTF-8 without NUL characters, not {shortened(text)!r}")


def flag(
    default: Any,
    help_text: str,
    *,
    is_text: bool = False,
    adds_up: bool = False,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that is a flag; `is_text`, `adds_up` and `read` as in `Flag`."""
    metadata = {"help": help_text, "is_text": is_text, "adds_up": adds_up, "read": read}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_all(checks: Mapping[str, bool]) -> None:
    """Check what needs no file: messages, and whether all is well.

    Raises:
        UserError: with the message of every check that fails.
    """
    raise_problems(message for message, is_ok in checks.items() if not is_ok)


def flags_of(argument_type: type) -> list[Flag]:
    """The flags of a dataclass whose fields were made by `flag`: its own before those that it inherits."""
    hints = typing.get_type_hints(argument_type)
    fields = sorted(
        dataclasses.fields(argument_type), key=lambda field: field.name not in argument_type.__annotations__
    )
    return [_flag_of(field, hints[field.name]) for field in fields]


def _flag_of(field: dataclasses.Field, hint: Any) -> Flag:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the latter of a Literal with None
    variants = typing.get_args(hint) if is_union else (hint,)
    plain, *others = [variant for variant in variants if variant is not type(None)]
    is_list = typing.get_origin(plain) is list
    inner = typing.get_args(plain)[0] if is_list else plain
    literals = [kind for kind in (inner, *others) if typing.get_origin(kind) is typing.Literal]
    choices = typing.get_args(literals[0]) if literals else ()
    factory: Any = field.default_factory
    default = field.default if field.default is not dataclasses.MISSING else factory()
    return Flag(
        name=field.name,
        value_type=str if inner in literals else inner,
        default=default,
        help=field.metadata["help"],
        choices=choices,
        is_list=is_list,
        is_optional=type(None) in variants,
        is_text=field.metadata["is_text"],
        adds_up=field.metadata["adds_up"],
        read=field.metadata["read"],
    )


def _read_bool(text: str) -> bool:
    if text.lower() not in TRUE_WORDS + FALSE_WORDS:
        raise ValueError(text)
    return text.lower() in TRUE_WORDS


def _read_json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)  # its JSONDecodeError is a ValueError
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


READERS: dict[type, Callable[[str], Any]] = {bool: _read_bool, dict: _read_json_object, Path: Path}
