"""Damaged and forged JSON documents, the same ones for the same seed: files that a program must not believe."""

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

# In place of any value: each type of JSON, and numbers at the edges of what arithmetic takes.
WRONG_VALUES = (None, True, False, "", "x", "nan", "../../x", 0, -1, 1.5, 2**53 + 1, 2**63, 10**400, -(10**400))
WRONG_VALUES += (
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": None},
    "\ud800",
    "\x00",
    "\x1b[2J",
    "9" * 5000,
)
GARBAGE = (
    b"\x00" * 64,
    b"\xff\xfe",
    "é".encode()[:1],
    b"\xef\xbb\xbf",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\n\n",
    b"9" * 5000,
)

T = TypeVar("T")
CI_SHARE = 20  # one mutation in so many is tried by `make test`, all by `make faults`

Place = tuple[Any, Any]  # a container, and the key or index of a value in it


def num_mutations(total: int) -> int:
    """How many of `total` mutations are tried now: all of them where NUM_MUTATIONS is "all"."""
    return total // _share()


def tried_now(cases: Iterable[T]) -> list[T]:
    """The same one in so many of the cases every time, from the first to the last of them; or all of them."""
    return list(cases)[:: _share()]


def _share() -> int:
    return 1 if os.environ.get("NUM_MUTATIONS") == "all" else CI_SHARE


def mutations(content: bytes, seed: int) -> Iterator[bytes]:
    """Endless variants of a JSON document, or of JSON lines: of each some bytes, or one value, is another.

    Bytes that are not valid JSON are damaged as bytes only.
    """
    generator = random.Random(seed)
    while True:
        change = generator.choice((_flip, _cut, _insert, *[_change_value] * 6))
        yield change(content, generator)


def _flip(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 4, 32))):
        if changed:
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _cut(content: bytes, generator: random.Random) -> bytes:
    """The end is missing, or all of it, or a piece; a disk that lost power leaves zeros instead."""
    begin, end = sorted(generator.randrange(len(content) + 1) for _ in range(2))
    zeros = content[:begin] + b"\x00" * (end - begin) + content[end:]
    return generator.choice((content[:begin], content[:begin], content[:begin] + content[end:], zeros, b""))


def _insert(content: bytes, generator: random.Random) -> bytes:
    place = generator.choice((0, len(content), generator.randrange(len(content) + 1)))
    return content[:place] + generator.choice(GARBAGE) + content[place:]


def _change_value(content: bytes, generator: random.Random) -> bytes:
    """One value of the document, or of one of its lines."""
    try:
        return _changed_document(content, generator)
    except (ValueError, RecursionError):
        pass
    lines = content.splitlines(keepends=True)
    try:
        number = generator.randrange(len(lines))
        lines[number] = _changed_document(lines[number], generator) + b"\n"
    except (ValueError, RecursionError):
        return _flip(content, generator)
    return b"".join(lines)


def _changed_document(content: bytes, generator: random.Random) -> bytes:
    root = [json.loads(content)]
    container, key = generator.choice(list(_places(root)))
    operation: Callable[[Any, Any, random.Random], None] = generator.choice(
        (_drop, _replace, _replace, _replace, _duplicate, _retag, _deepen, _rename)
    )
    operation(container, key, generator)
    document = root[0] if root else None
    # Escaped: a lone surrogate has no bytes of its own.
    return json.dumps(document, indent=generator.choice((None, None, 1)) if b"\n" in content.strip() else None).encode()


def _places(container: Any) -> Iterator[Place]:
    keys = list(container) if isinstance(container, dict) else range(len(container))
    for key in keys:
        yield container, key
        if isinstance(container[key], (dict, list)):
            yield from _places(container[key])


def _drop(container: Any, key: Any, generator: random.Random) -> None:
    del container[key]


def _replace(container: Any, key: Any, generator: random.Random) -> None:
    container[key] = generator.choice(WRONG_VALUES)


def _duplicate(container: Any, key: Any, generator: random.Random) -> None:
    """A second time in its list, or in place of a neighbor."""
    if isinstance(container, list):
        container.insert(key, container[key])
    else:
        container[generator.choice(list(container))] = container[key]


def _retag(container: Any, key: Any, generator: random.Random) -> None:
    """The same value as another type."""
    value = container[key]
    as_number = value + 0.5 if isinstance(value, float) else len(str(value))
    container[key] = generator.choice((str(value), [value], {"value": value}, {str(value): None}, as_number))


def _deepen(container: Any, key: Any, generator: random.Random) -> None:
    """Below many lists or objects; json reads and writes fewer than 1,000 levels."""
    for _ in range(generator.choice((2, 50, 300))):
        container[key] = [container[key]] if generator.random() < 0.5 else {"x": container[key]}


def _rename(container: Any, key: Any, generator: random.Random) -> None:
    """Another name of a field; of an item, another place."""
    if isinstance(container, dict):
        container[generator.choice((key + "_", key.upper(), "", "__class__", "\ud800"))] = container.pop(key)
    else:
        container.append(container.pop(key))
