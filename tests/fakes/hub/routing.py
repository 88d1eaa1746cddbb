"""A request as a route sees it, and what it answers."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.hub.repositories import Repository, Storage, User
from tests.fakes.hub.xet import XetStore

REPO = r"/api/(model|dataset)s/([^/]+/[^/]+)"


@dataclass(frozen=True)
class Call:
    """Everything a route may look at."""

    storage: Storage
    xet: XetStore
    url: str
    user: User | None
    method: str
    words: list[str]
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    damage: Callable[[bytes], bytes] = bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def readable(self) -> Repository:
        return self.storage.readable(self.words[0] or "model", self.words[1], self.user)

    def writable(self) -> Repository:
        return self.storage.writable(self.words[0] or "model", self.words[1], self.user)

    def with_other_bytes(self, fault: str) -> "Call":
        """The same call, but what it stores is not what arrived."""
        return dataclasses.replace(self, damage=_flip_last_bit if fault == "flip" else _cut_last_byte)


def _flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes(byte ^ 1 for byte in content[-1:])


def _cut_last_byte(content: bytes) -> bytes:
    return content[:-1]


@dataclass(frozen=True)
class Answer:
    """JSON, or the bytes of a file."""

    content: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


Route = tuple[str, re.Pattern[str], Callable[[Call], Answer]]


def route(method: str, pattern: str, answer: Callable[[Call], Answer]) -> Route:
    return method, re.compile(pattern), answer
