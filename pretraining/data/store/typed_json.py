"""Build dataclasses from JSON that somebody else may have written: every field present, of its type, and no other."""

import dataclasses
import functools
import json
import reprlib
import types
import typing
from typing import Any

MAX_NUMBER = 2**63 - 1  # of Arrow's and NumPy's int64
UNIONS = (types.UnionType, typing.Union)


def read_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: when it is not JSON, has NaN or Infinity, or is nested too deeply for Python.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def from_json(target: Any, content: Any, place: str = "it") -> Any:
    """The value of type `target` that `content` stands for; `place` names it in errors.

    Whole numbers are counts, sizes and ids here, so none may be negative.

    Raises:
        ValueError: when a field is missing, unknown, or has a value of another type.
    """
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
    return _plain(target, content, place)


def _dataclass_from(target: Any, content: Any, place: str) -> Any:
    hints = _hints(target)
    values = _checked(dict, content, place)
    missing = dataclasses.MISSING
    fields = dataclasses.fields(target)
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    odd = sorted(required - values.keys()) or sorted(values.keys() - hints.keys())
    if odd:
        raise ValueError(f"{place} {'lacks' if odd[0] in required else 'has an unknown field'} {reprlib.repr(odd[0])}")
    return target(**{name: from_json(hints[name], value, f"{place}.{name}") for name, value in values.items()})


def _plain(target: Any, content: Any, place: str) -> Any:
    if typing.get_origin(target) is typing.Literal:
        choices = typing.get_args(target)
        if content not in choices:
            raise ValueError(f"{place} is {reprlib.repr(content)}, not one of {', '.join(map(str, choices))}")
        return content
    if type(content) is int and not 0 <= content <= MAX_NUMBER:
        raise ValueError(f"{place} is out of range ({reprlib.repr(content)})")
    value = _checked(target, float(content) if target is float and type(content) is int else content, place)
    if target is str:
        value.encode()  # a lone surrogate can be neither shown nor written; its UnicodeEncodeError is a ValueError
    return value


def _checked(target: type, content: Any, place: str) -> Any:
    if type(content) is not target:  # True is an int for isinstance
        raise ValueError(f"{place} is {reprlib.repr(content)}, which is not of type {target.__name__}")
    return content


@functools.cache
def _hints(target: Any) -> dict[str, Any]:
    return typing.get_type_hints(target)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
