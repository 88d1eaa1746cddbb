"""Parse JSON that a disk, a person or another program may have changed, and check its types."""

import dataclasses
import functools
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any

MAX_DEPTH = 64  # of nested lists and objects; the programs write 8 at most
MAX_INT = 2**63 - 1  # of int64 in NumPy and Arrow
NUMBER = int | float  # "nan" and "inf" are written as words
UNIONS = (types.UnionType, typing.Union)
_type_hints = functools.cache(typing.get_type_hints)
# A type or a union of types; a dict of schemas by name, `str` for all others; [the schema of the items] of a list;
# (None, schema) for what may be null.
Schema = Any


def parse_json(content: bytes) -> Any:
    """The value of a JSON document; its texts are UTF-8, and its integers fit 64 bits.

    Raises:
        ValueError: with the reason.
    """
    try:
        value = json.loads(content.decode("utf-8"))  # of bytes, it would accept UTF-16 and UTF-32, too
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    _check_limits(value, MAX_DEPTH)
    return value


def _check_limits(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_limits(item, depth - 1)
    elif isinstance(value, int):
        if abs(value) > MAX_INT:
            raise ValueError("an integer of more than 64 bits")
    elif isinstance(value, str) and not value.isascii():
        value.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate


def from_json(target: Any, content: Any, place: str = "it") -> Any:
    """Convert `content` to type `target`: a dataclass with every field present, of its type, and no other.

    `place` names the value in errors. Integers are counts, sizes and ids, so none may be negative.

    Raises:
        ValueError: when a field is missing, unknown, or has a value of another type.
    """
    if target is Any:
        return content
    if dataclasses.is_dataclass(target):
        return _dataclass_from(target, content, place)
    origin, arguments = typing.get_origin(target), typing.get_args(target)
    if origin in UNIONS:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if content is None else from_json(inner, content, place)
    if origin is dict:
        items = _checked(dict, content, place).items()
        return {name: from_json(arguments[1], value, f"{place}[{reprlib.repr(name)}]") for name, value in items}
    if origin in (list, tuple):
        items = enumerate(_checked(list, content, place))
        return origin(from_json(arguments[0], value, f"{place}[{number}]") for number, value in items)
    if origin is typing.Literal:
        if content not in arguments:
            raise ValueError(f"{place} is {reprlib.repr(content)}, not one of {', '.join(map(str, arguments))}")
        return content
    return _plain(target, content, place)


def _dataclass_from(target: Any, content: Any, place: str) -> Any:
    hints = _type_hints(target)
    values = _checked(dict, content, place)
    missing = dataclasses.MISSING
    fields = dataclasses.fields(target)
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    odd = sorted(required - values.keys()) or sorted(values.keys() - hints.keys())
    if odd:
        raise ValueError(f"{place} {'lacks' if odd[0] in required else 'has an unknown field'} {reprlib.repr(odd[0])}")
    return target(**{name: from_json(hints[name], value, f"{place}.{name}") for name, value in values.items()})


def _plain(target: type, content: Any, place: str) -> Any:
    if type(content) is int and not 0 <= content <= MAX_INT:
        raise ValueError(f"{place} is out of range ({reprlib.repr(content)})")
    value = _checked(target, float(content) if target is float and type(content) is int else content, place)
    if target is float and not math.isfinite(value):
        raise ValueError(f"{place} is {value}, which is not JSON")
    return value


def _checked(target: type, content: Any, place: str) -> Any:
    if type(content) is not target:  # True is an int for isinstance
        raise ValueError(f"{place} is {reprlib.repr(content)}, which is not of type {target.__name__}")
    return content


def type_problem(value: Any, schema: Schema, path: str = "") -> str | None:
    """The first place where a value does not match its schema, with the type that it must have; None if it matches.

    Fields may be missing, and fields that no schema names may be anything.

    >>> type_problem({"run": {"steps": "7", "seed": 1}}, {"run": {"steps": int}})
    'run.steps is a string, not a whole number'
    """
    return next(_type_problems(value, schema, path), None)


def _type_problems(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if isinstance(schema, tuple):
        schema = type(None) if value is None else schema[1]
    expected = type(schema) if isinstance(schema, (dict, list)) else schema
    if not isinstance(value, expected) or (isinstance(value, bool) and expected not in (bool, object)):
        yield f"{path or 'it'} is {_name_of(type(value))}, not {_name_of(expected)}"
        return
    for name, item, inner in _items(value, schema):
        yield from _type_problems(item, inner, f"{path}.{name}" if path else str(name))


def _items(value: Any, schema: Schema) -> Iterator[tuple[Any, Any, Schema]]:
    """Name, value and schema of the items of an object or a list."""
    if isinstance(schema, dict):
        yield from ((name, value[name], schema.get(name, schema.get(str, object))) for name in value)
    elif isinstance(schema, list):
        yield from ((number, item, schema[0]) for number, item in enumerate(value))


def _name_of(expected: type | UnionType) -> str:
    names: Mapping[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
        type(None): "null",
        NUMBER: "a number",
    }
    if expected in names:
        return names[expected]
    return " or ".join(names[one] for one in getattr(expected, "__args__", ()))
