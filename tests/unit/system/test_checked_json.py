"""JSON from elsewhere has the types that were asked for, or one line says what is wrong."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pretraining.system.checked_json import from_json, parse_json, type_problem


@dataclass
class Part:
    name: str
    share: float | None
    kind: Literal["a", "b"]
    sizes: list[int] = field(default_factory=list)


FINE = {"name": "x", "share": 1, "kind": "a", "sizes": [1, 2]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff", "not UTF-8 at byte 0"),
        (b"{", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        ('{"a": 1}'.encode("utf-16-le"), "not JSON"),
        ('{"a": 1}'.encode("utf-32"), "not UTF-8 at byte 0"),
        ('{"a": 1}'.encode("utf-8-sig"), "not JSON"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b"[9223372036854775808]", "more than 64 bits"),
        (b'["\\ud800"]', "surrogates not allowed"),
    ],
)
def test_what_is_not_json_within_the_limits_is_rejected(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(content)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": 1}, "it.name is 1, which is not of type str"),
        ({"share": float("nan")}, "it.share is nan, which is not JSON"),
        ({"share": True}, "it.share is True, which is not of type float"),
        ({"kind": "c"}, "it.kind is 'c', not one of a, b"),
        ({"sizes": [1, -1]}, r"it.sizes\[1\] is out of range \(-1\)"),
        ({"sizes": [True]}, r"it.sizes\[0\] is True, which is not of type int"),
        ({"more": 1}, "it has an unknown field 'more'"),
    ],
)
def test_a_dataclass_has_fields_of_its_types_and_no_others(changes: dict[str, Any], problem: str) -> None:
    assert from_json(Part, FINE) == Part("x", 1.0, "a", [1, 2])
    with pytest.raises(ValueError, match=problem):
        from_json(Part, FINE | changes)
    with pytest.raises(ValueError, match="it lacks 'kind'"):
        from_json(Part, {"name": "x", "share": None})


def test_a_schema_names_the_first_place_that_does_not_match() -> None:
    schema = {"steps": int, "rows": [{"loss": int | float}], "end": (None, str)}
    assert type_problem({"steps": 1, "rows": [{"loss": 0.5}], "end": None, "other": []}, schema) is None
    assert type_problem({"rows": [{"loss": 1}, {"loss": "1"}]}, schema) == "rows.1.loss is a string, not a number"
    assert type_problem({"steps": True}, schema) == "steps is true or false, not a whole number"
