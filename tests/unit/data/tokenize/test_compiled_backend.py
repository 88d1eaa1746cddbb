"""The compiled backend in threads and while it is not ready, and its faults, which are found."""

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from pretraining.data.tokenize import compiled_backend
from pretraining.data.tokenize.backends import (
    Backend,
    BackendDiffersError,
    CheckedBackend,
    FlatIds,
    ReferenceBackend,
)
from pretraining.data.tokenize.bpe_tables import UnsupportedError
from pretraining.data.tokenize.compiled_backend import (
    MAX_PIECE_BYTES,
    PADDING_BYTES,
    CompiledBackend,
    Functions,
    SwitchingBackend,
    check_kind,
)
from pretraining.system.compiled.unit import CompiledError
from tests.unit.data.tokenize.test_backends import odd_texts
from tests.unit.data.tokenize.test_bpe_words import EIGHT_MORE, all_texts
from tests.unit.data.tokenize.vocabularies import METASPACE, VOCABULARIES, everything_joins, small


def backend_of(compiled: Functions) -> tuple[CompiledBackend, ReferenceBackend]:
    tokenizer = small()
    return CompiledBackend(json.loads(tokenizer.to_str()), compiled), ReferenceBackend(tokenizer)


def test_no_text_is_an_empty_result(compiled: Functions) -> None:
    backend, _ = backend_of(compiled)
    assert backend.encode([]).lengths.tolist() == []
    assert backend.encode(["", ""]).lengths.tolist() == [0, 0]


def test_threads_share_tables_and_not_caches(compiled: Functions) -> None:
    backend, reference = backend_of(compiled)
    texts = [text for text in odd_texts(80) if len(text) < 1000]
    batches = [[f"{text} {number}" for text in texts[number % 50 :]] for number in range(80)]
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(backend.encode, batches))
    for batch, flat in zip(batches, found, strict=True):
        assert np.array_equal(flat.ids, reference.encode(batch).ids)
    assert 1 <= len(backend._idle_states) <= 8


@pytest.mark.parametrize("name", ["merges", "character_ids", "ascii_cuts", "byte_ids"])
def test_every_wrong_entry_changes_ids(name: str, compiled: Functions) -> None:
    """So a test of exactness sees each: a merge that is missing or gives another token, a cut that is not safe."""
    texts = ["▁", *all_texts("abcé東京\n ", 4), *map(chr, range(0x80, 0x800))]
    texts += [text + EIGHT_MORE for text in all_texts("abc\n ", 3)]
    backend, reference = backend_of(compiled)
    expected = reference.encode(texts).ids
    assert np.array_equal(backend.encode(texts).ids, expected)
    right = getattr(backend._tables, name)
    missing = 1 if name == "ascii_cuts" else -1
    places = [place for place in np.flatnonzero(right != missing).tolist() if is_used(name, place)]
    for place in places[:: 4 if name == "byte_ids" else 1]:
        backend, _ = backend_of(compiled)
        wrong = getattr(backend._tables, name)
        wrong[place] = 1 if name == "ascii_cuts" else wrong[place] + 1
        assert not np.array_equal(backend.encode(texts).ids, expected), f"{name}[{place}]"
    assert len(places) == {"merges": 30, "character_ids": 9, "ascii_cuts": 8, "byte_ids": 94}[name]


def is_used(name: str, place: int) -> bool:
    """Whether a text of the test has the character, or a byte of an unknown one."""
    if name == "character_ids":
        return chr(place) in "abcé東京\n ▁"
    return name != "byte_ids" or 0x80 <= place <= 0xBF or 0xC2 <= place <= 0xDF


def test_a_wrong_entry_for_a_rare_word_is_found_while_running(compiled: Functions) -> None:
    backend, reference = backend_of(compiled)
    pieces = json.loads(small().to_str())["model"]["vocab"]
    table = backend._tables.merges.reshape(-1, 2)
    table[table[:, 0] == pieces["東"] << 32 | pieces["京"], 1] += 1
    checked = CheckedBackend(backend, reference)
    checked.encode([f"story {number} of a many" for number in range(5000)])
    with pytest.raises(BackendDiffersError, match="compiled gives other ids than the reference"):
        checked.encode([f"story {number} of 東京" for number in range(20_000)])


def test_a_text_that_no_window_divides_ends_the_backend(compiled: Functions) -> None:
    functions = replace(compiled, encode_batch=lambda *_: -1)
    backend = CompiledBackend(json.loads(everything_joins().to_str()), functions)
    with pytest.raises(BackendDiffersError, match="compiled cannot divide a text"):
        backend.encode(["abc"])


@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_long_text_is_encoded_in_pieces(
    make: Callable[[], Tokenizer], compiled: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces are cut where nothing is merged, here a character at a time, from the 100th on."""
    tokenizer = make()
    backend = CompiledBackend(json.loads(tokenizer.to_str()), compiled)
    chance = random.Random(4)
    texts = [*odd_texts(100), "", " a" * 300, "x" * 500, "a" * 500]
    texts += ["".join(chance.choices("abcé東x ▁\n", k=1000)) for _ in range(15)]
    expected = backend.encode(texts)
    monkeypatch.setattr(compiled_backend, "MAX_PIECE_BYTES", 100)
    found = backend.encode(texts)
    assert np.array_equal(found.lengths, expected.lengths)
    assert np.array_equal(found.ids, expected.ids)
    assert expected.ids.tolist() == ReferenceBackend(tokenizer).encode(texts).ids.tolist()


class Counted:
    """A backend that counts its calls."""

    name = "first"

    def __init__(self, backend: Backend) -> None:
        self.num_calls = 0
        self._backend = backend

    def encode(self, texts: list[str]) -> FlatIds:
        self.num_calls += 1
        return self._backend.encode(texts)


def test_another_backend_encodes_until_the_compiled_one_is_ready(compiled: Functions) -> None:
    backend, reference = backend_of(compiled)
    is_ready = threading.Event()
    first, texts = Counted(reference), ["ab abc", "", "東京"]
    switching = SwitchingBackend(first, lambda: is_ready.wait() and backend)
    before = switching.encode(texts)
    assert first.num_calls == 1
    is_ready.set()
    assert switching.wait() is backend
    after = switching.encode(texts)
    assert first.num_calls == 1
    assert np.array_equal(before.ids, after.ids)


@pytest.mark.parametrize(
    ("problem", "lines"),
    [
        (
            CompiledError("numba is not installed"),
            ["encoding with first, several times slower: no compiled encoder (numba is not installed)"],
        ),
        (
            BackendDiffersError("other ids"),
            ["encoding with first, several times slower: no compiled encoder (other ids)"],
        ),
        (UnsupportedError("the normalizer NFC"), []),
    ],
    ids=["compiler", "probe", "another kind of tokenizer"],
)
def test_another_backend_keeps_encoding_if_there_is_no_compiled_one(
    problem: Exception, lines: list[str], compiled: Functions, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Backend:
        raise problem

    switching = SwitchingBackend(first := Counted(backend_of(compiled)[1]), fail)
    assert switching.wait() is first
    assert caplog.messages == lines


def test_the_kind_of_a_tokenizer_is_checked_first() -> None:
    check_kind(json.loads(small().to_str()))
    check_kind(json.loads(small(normalizer=None, pre_tokenizer=METASPACE).to_str()))
    with pytest.raises(UnsupportedError, match="Whitespace"):
        check_kind(json.loads(small(pre_tokenizer={"type": "Whitespace"}).to_str()))


def test_many_bytes_without_a_document(compiled: Functions) -> None:
    backend, none = backend_of(compiled)[0], np.empty(0, np.uint64)
    flat = backend.encode_utf8(np.zeros(MAX_PIECE_BYTES + 100, np.uint8), none, none, np.uint16)
    assert not len(flat.ids)
    assert not len(flat.lengths)


def test_a_control_token_that_was_added_beyond_16_bits(compiled: Functions) -> None:
    """Ids of the vocabulary fit into two bytes, its own does not."""
    pipeline = json.loads(small().to_str())
    pipeline["added_tokens"].append({"id": 70_000, "content": "</end>", "special": True})
    backend, text = CompiledBackend(pipeline, compiled), np.frombuffer(b"abc" + bytes(PADDING_BYTES), np.uint8)
    bounds = np.array([0, 3], np.uint64)
    flat = backend.encode_utf8(text, bounds[:1], bounds[1:], np.uint32, eos_token_id=70_000)
    assert flat.ids[-1] == 70_000
    assert flat.ids[:-1].tolist() == backend.encode(["abc"]).ids.tolist()[-len(flat.ids) + 1 :]
