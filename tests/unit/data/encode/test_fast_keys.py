"""Compiled keys are those of datasketch to the bit, and Python computes them wherever that is not so."""

import json
import random
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from pretraining.data.encode import fast_keys
from pretraining.data.encode.fast_keys import PROBES, UNIT, CompiledKeys, KeyFunction, keys_in_python
from pretraining.data.encode.minhash import MinHashBands
from pretraining.data.encode.normalize_bytes import CharacterTables, character_tables
from pretraining.system.compiled.cache import BackgroundLibrary, load_compiled
from pretraining.system.compiled.library import CompiledLibrary
from tests.conftest import PROJECT_DIR, REAL_DATA_DIR

pytestmark = pytest.mark.skipif(find_spec("numba") is None, reason="needs Numba")

STORIES = [json.loads(line)["text"] for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()]
MINHASH = MinHashBands(0.8)
LARGE = 1 << 40  # bytes of input


@pytest.fixture(scope="module", autouse=True)
def characters() -> Iterator[CharacterTables]:
    """The same in each test, made once."""
    with pytest.MonkeyPatch.context() as patched:
        tables = character_tables()
        patched.setattr(fast_keys, "character_tables", lambda: tables)
        yield tables


@pytest.fixture(scope="module")
def library() -> CompiledLibrary:
    return load_compiled(UNIT)


def assert_equal_keys(library: CompiledLibrary, texts: list[str], near: MinHashBands | None = MINHASH) -> None:
    expected, found = keys_in_python(texts, near), CompiledKeys(library, near)(texts)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        wrong = np.flatnonzero((one != other).any(axis=1))
        assert not len(wrong), [texts[number][:80] for number in wrong[:5]]


@pytest.mark.parametrize("threshold", [None, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
def test_keys_are_those_of_datasketch(library: CompiledLibrary, threshold: float | None) -> None:
    near = None if threshold is None else MinHashBands(threshold)
    assert_equal_keys(library, [*STORIES, *PROBES], near)
    assert_equal_keys(library, [], near)


def test_every_character_alone_and_in_a_text(library: CompiledLibrary) -> None:
    """All but those without properties, of which there are 800,000: a hundredth of them."""
    codes = sorted({*range(0x40000), *range(0xE0000, 0xE1000), *range(0x40000, 0x110000, 97)})
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    assert_equal_keys(library, characters, near=None)
    rows = ["".join(characters[start : start + 32]) for start in range(0, len(characters), 32)]
    assert_equal_keys(library, [f"a {row} b" for row in rows])
    words = [f"one two {each}three four{each}{each} five six seven" for each in characters[:0x3400:3]]
    assert_equal_keys(library, words)


def test_random_texts_of_every_kind(library: CompiledLibrary) -> None:
    generator = random.Random(0)
    alphabets = [
        "ab ",
        "aB_9 -\n\t\u00a0\u2003",
        "éÉßΣςİ ΐ\u0345",
        "e\u0301\u0323\u0307 \u0915\u093c\u094d",
        "今京ก ข\u0e48가각\u1112\u1161\u11ab",
        "𠀀🚆\U0001d400 \u200d",
    ]
    alphabets.append("".join(alphabets))
    lengths = [0, 1, 2, 5, 30, 300, 3000]
    texts = [
        "".join(generator.choices(alphabet, k=generator.choice(lengths))) for alphabet in alphabets for _ in range(60)
    ]
    assert len({unicodedata.is_normalized("NFC", text) for text in texts}) == 2
    assert_equal_keys(library, texts)


def test_texts_of_any_length(library: CompiledLibrary) -> None:
    words = [f"w{number}" for number in range(6200)]
    sizes = [*range(9), *range(2040, 2056), 4091, 4092, 4093, 4100, 6143, 6144, 6145]
    texts = [" ".join(words[:size]) for size in sizes]
    texts += ["x" * length + " a b c d e f" for length in (1, 110, 120, 127, 128, 129, 255, 256, 257, 5000)]
    assert_equal_keys(library, texts)


@pytest.mark.skipif(not REAL_DATA_DIR.exists(), reason="needs the real data")
@pytest.mark.long
def test_real_news(library: CompiledLibrary) -> None:
    lines = (REAL_DATA_DIR / "news.jsonl").read_text().splitlines()
    assert_equal_keys(library, [json.loads(line)["text"] for line in lines])


def test_python_computes_until_the_loops_are_there(library: CompiledLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_keys, "is_cached", lambda _: False)
    keys = KeyFunction(MINHASH, LARGE)
    background = keys._background
    assert background is not None
    with monkeypatch.context() as patch:
        patch.setattr(BackgroundLibrary, "library", None)
        before = keys(STORIES[:9])
        assert keys._compiled is None
    background.wait()
    after = keys(STORIES[:9])
    assert keys._compiled is not None
    assert all(map(np.array_equal, before, after))
    keys.close()


@pytest.mark.parametrize(("near", "num_bytes"), [(MINHASH, 1 << 20), (None, 10 << 20)])
def test_small_input_loads_nothing(near: MinHashBands | None, num_bytes: int) -> None:
    keys = KeyFunction(near, num_bytes)
    assert keys._background is None
    assert np.array_equal(keys(STORIES[:2])[0], keys_in_python(STORIES[:2], near)[0])
    keys.close()


def test_wrong_keys_are_found_before_they_are_used(
    characters: CharacterTables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tables = characters._replace(entries=characters.entries.copy())
    tables.entries[ord("q")] = 0
    monkeypatch.setattr(fast_keys, "character_tables", lambda: tables)
    keys = KeyFunction(MINHASH, LARGE)
    assert keys._background is not None
    keys._background.wait()
    expected = keys_in_python(STORIES[:3], MINHASH)
    for _ in range(2):
        assert all(map(np.array_equal, keys(STORIES[:3]), expected))
    (message,) = caplog.messages
    assert message == (
        "duplicates are found in Python, which is slower: compiled loops cannot be used "
        "(their keys are wrong on this machine)"
    )


def test_one_line_says_why_the_loops_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llvmlite", None)
    keys = KeyFunction(MINHASH, LARGE)
    assert keys._background is not None
    keys._background._thread.join()
    for _ in range(2):
        assert np.array_equal(keys(STORIES[:3])[1], MINHASH.bands(STORIES[:3]))
    (message,) = caplog.messages
    assert message.startswith("duplicates are found in Python, which is slower: compiled loops cannot be used (")
