"""JSON that a disk, a hand or somebody else may have changed: either its types are right, or one line says why not."""

import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any

MAX_DEPTH = 64  # of lists and objects in each other; what programs write here has 8 at most
MAX_INT = 2**63 - 1  # what fits arithmetic with floats, and 64 bits
NUMBER = int | float  # "nan" and "inf" are written as words
# A type or a union of types; a dict of schemas by name, `str` for all others; [the schema of the items] of a list;
# (None, schema) for what may be null.
Schema = Any


def parse_json(content: bytes) -> Any:
    """The value of a JSON document, of which every text has bytes in UTF-8 and every whole number fits 64 bits.

    Raises:
        ValueError: when it is not one, with the reason.
    """
    try:
        value = json.loads(content)
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
            raise ValueError("a whole number of more than 64 bits")
    elif isinstance(value, str) and not value.isascii():
        value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair


def type_problem(value: Any, schema: Schema, path: str = "") -> str | None:
    """The first place where a value is not of its schema, with the type that it must have; None when there is none.

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
    """Name, value and schema of what is in an object or a list."""
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
