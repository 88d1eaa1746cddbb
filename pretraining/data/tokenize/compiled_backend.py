"""Encode BPE without a pre-tokenizer by compiled loops: 300 MB/s per core of Llama-2 tokens on an Intel Xeon (2023).

`fastokens` and the reference encode meanwhile, until the loops are compiled (10 s of one core, once per machine) or
loaded, and wherever this backend does not support a tokenizer.
"""

import atexit
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretraining.data.encode import blake2b
from pretraining.data.input.json import loops, strings
from pretraining.data.tokenize import bpe_merges, bpe_words, word_cache
from pretraining.data.tokenize.backends import Backend, BackendDiffersError, FlatIds
from pretraining.data.tokenize.bpe_merges import BpeTables, EncoderState, Window
from pretraining.data.tokenize.bpe_tables import TextRules, UnsupportedError, build_tables, check_model, read_rules
from pretraining.data.tokenize.reference import TokenizerFile
from pretraining.system.compiled import words
from pretraining.system.compiled.cache import BackgroundLibrary, StoppedError, is_cached
from pretraining.system.compiled.unit import CompiledUnit
from pretraining.system.cores import usable_cores

MODULES = tuple(module.__name__ for module in (words, bpe_merges, word_cache, bpe_words, blake2b, strings, loops))
UNIT = CompiledUnit(MODULES, ("encode_batch", "fill_merges", "read_json_lines", "hash_texts"))
CACHE_ENTRIES = 1 << 18  # short words per thread, 32 bytes each; a quarter of it for long words, 64 bytes each
MAX_PIECE_BYTES = 1 << 23  # of what is encoded at once
NO_CONTROL = bpe_words.NO_CONTROL
Control = tuple[int, ...]  # two ids: before and after a text
PADDING_BYTES = 32  # the loops load 32 bytes from any place of a text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Functions:
    """The loops, compiled or as Python runs them, in the order of UNIT."""

    encode_batch: Callable[..., int]
    fill_merges: Callable[..., int]
    read_json_lines: Callable[..., int]
    hash_texts: Callable[..., int]


class CompiledBackend:
    """The loops with the tables of one tokenizer; threads share the tables, and each call has a cache for itself."""

    name = "compiled"

    def __init__(self, pipeline: dict[str, Any], functions: Functions, *, cache_entries: int = CACHE_ENTRIES) -> None:
        self.rules: TextRules = read_rules(pipeline)
        self.functions = functions
        self._tables: BpeTables = build_tables(pipeline, self.rules, functions.fill_merges)
        self._dtype = _dtype_of(pipeline)
        self._cache_entries = cache_entries
        self._cores = threading.Semaphore(usable_cores())
        self._idle_states: list[EncoderState] = []  # append and pop are atomic

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of `texts`, without any control token.

        Raises:
            BackendDiffersError: as `encode_utf8`.
        """
        parts = [part for text in texts for part in (self.rules.prefix_of(text[:1]), text.encode("utf-8"))]
        bounds = np.cumsum(np.array([0, *map(len, parts)], np.uint64))[::2].copy()
        joined = np.frombuffer(b"".join([*parts, bytes(PADDING_BYTES)]), np.uint8)
        del parts
        return self.encode_utf8(joined, bounds[:-1], bounds[1:], self._dtype)

    def encode_utf8(
        self,
        data: np.ndarray,
        begins: np.ndarray,
        ends: np.ndarray,
        dtype: Any,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
    ) -> FlatIds:
        """Ids of the texts `data[begins[n] : ends[n]]`, of this type, with these control tokens.

        Each text has its prefix, and PADDING_BYTES follow the last one.

        Raises:
            BackendDiffersError: when a text has a run of thousands of characters that cannot be divided.
        """
        control = tuple(NO_CONTROL if one is None else one for one in (bos_token_id, eos_token_id))
        if len(data) <= MAX_PIECE_BYTES or not len(begins):
            return self._encode(data, begins, ends, control, dtype)
        parts = [self._encode_long(data, *place, control, dtype) for place in zip(begins, ends, strict=True)]
        lengths = np.array([len(part) for part in parts], np.int64)
        return FlatIds(np.concatenate(parts) if len(parts) != 1 else parts[0], lengths)

    def _encode_long(self, data: np.ndarray, begin: int, end: int, control: Control, dtype: Any) -> np.ndarray:
        """The ids of a text, encoded in pieces: takes 4 bytes of memory per byte of a piece, not of the text."""
        cuts = [int(begin), *self._cuts(data, int(begin), int(end)), int(end)]
        controls = [control] if len(cuts) == 2 else [(control[0], NO_CONTROL), (NO_CONTROL, control[1])]
        controls[1:1] = [(NO_CONTROL, NO_CONTROL)] * (len(cuts) - 3)
        bounds = np.array(cuts, np.uint64)
        parts = [
            self._encode(data, bounds[place : place + 1], bounds[place + 1 : place + 2], own, dtype).ids
            for place, own in enumerate(controls)
        ]
        return np.concatenate(parts)

    def _cuts(self, data: np.ndarray, begin: int, end: int) -> Iterator[int]:
        """Places of a text before and after which nothing is merged."""
        while end - begin > MAX_PIECE_BYTES:
            places = range(begin + MAX_PIECE_BYTES, begin + MAX_PIECE_BYTES - MAX_PIECE_BYTES // 100, -1)
            begin = next((place for place in places if self._is_cut(data, place)), end)
            if begin < end:
                yield begin

    def _is_cut(self, data: np.ndarray, place: int) -> bool:
        """Whether a character begins at a place, and nothing joins it with the one before."""
        before = place - 1
        while not _begins_character(data[before]):
            before -= 1
        first, second = (bpe_merges.character_at(data, np.uint64(start))[0] for start in (before, place))
        return _begins_character(data[place]) and not bpe_words.is_joined(first, second, self._tables)

    def _encode(self, data: np.ndarray, begins: np.ndarray, ends: np.ndarray, control: Control, dtype: Any) -> FlatIds:
        """The ids of texts by one call of the loops."""
        lengths = np.empty(len(begins), np.int64)
        documents = bpe_words.Documents(begins, ends, lengths, np.array(control, np.int64))
        num_bytes = int((ends - begins).sum())
        with self._cores:
            state = self._take_state(num_bytes + len(control) * len(begins))
            end = self.functions.encode_batch(documents, self._tables, state._replace(text=data))
            ids = state.ids[: max(end, 0)].view(self._dtype).astype(dtype)  # a copy: the next call may take the state
            self._idle_states.append(state)
        if end < 0:
            raise BackendDiffersError(f"{self.name} cannot divide a text of {num_bytes:,} bytes or less")
        return FlatIds(ids, lengths)

    def _take_state(self, num_ids: int) -> EncoderState:
        """A state with space for `num_ids`, which no other call uses until it is put back."""
        try:
            state = self._idle_states.pop()
        except IndexError:
            state = self._new_state()
        num_bytes = num_ids * state.id_bytes + PADDING_BYTES
        return state if len(state.ids) >= num_bytes else state._replace(ids=np.empty(num_bytes, np.uint8))

    def _new_state(self) -> EncoderState:
        short, long = self._cache_entries, max(1, self._cache_entries // 4)
        return EncoderState(
            text=np.empty(0, np.uint8),
            ids=np.empty(0, np.uint8),
            id_bytes=self._dtype.itemsize,
            cache=np.zeros((short + word_cache.NUM_PROBES) * word_cache.SHORT_ENTRY, np.uint64),
            long_cache=np.zeros((long + word_cache.NUM_PROBES) * word_cache.LONG_ENTRY, np.uint64),
            keys=np.empty(bpe_words.MAX_WORDS * int(word_cache.KEY_VALUES), np.uint64),
            long_key=np.empty(word_cache.LONG_VALUES, np.uint64),
            starts=np.empty(bpe_words.MAX_WORDS + 1, np.uint64),
            tokens=_new_window(),
            pair=_new_window(),
        )


def _dtype_of(pipeline: dict[str, Any]) -> np.dtype:
    """The type of ids: of tokens of the vocabulary, and of those that were added to it."""
    ids = [*pipeline["model"]["vocab"].values(), *(token["id"] for token in pipeline.get("added_tokens", []))]
    return np.dtype(np.uint16 if max(ids) < 1 << 16 else np.uint32)


def _begins_character(byte: int) -> bool:
    """Whether a byte of UTF-8 is the first one of a character."""
    return byte & 0xC0 != 0x80


def _new_window() -> Window:
    size = bpe_merges.LAST_WINDOW + 16
    return Window(np.empty(size, np.int64), np.empty(size, np.uint64), np.empty(size, np.int64))


class SwitchingBackend:
    """Another backend until the compiled one is ready, and for good if it never is."""

    name = CompiledBackend.name

    def __init__(self, first: Backend, load: Callable[[], Backend]) -> None:
        self._first = first
        self.current = first
        self._load = load
        self._thread = threading.Thread(target=self._prepare, name="prepare compiled backend", daemon=True)
        self._thread.start()

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of `texts`, without any control token."""
        return self.current.encode(texts)

    def wait(self) -> Backend:
        """The backend that encodes from now on, after a compilation that takes some seconds, once per machine."""
        if self._thread.is_alive():
            logger.info("compiling the encoder of later runs, once on this machine; Ctrl-C skips it")
        self._thread.join()
        return self.current

    def _prepare(self) -> None:
        try:
            self.current = self._load()
        except (UnsupportedError, StoppedError):
            return
        except Exception as error:  # whatever it is, the other backend gives the same ids
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("encoding with %s, several times slower: no compiled encoder (%s)", self._first.name, reason)


def check_kind(pipeline: dict[str, Any]) -> None:
    """Check what can be seen without reading the vocabulary, which takes 0.1 s.

    Raises:
        UnsupportedError: when the compiled backend cannot encode by this tokenizer.
    """
    model, pre_tokenizer = pipeline["model"].get("type", "BPE"), pipeline.get("pre_tokenizer")
    if model != "BPE":
        raise UnsupportedError(f"the model {model}")
    if pre_tokenizer is not None and pre_tokenizer["type"] != "Metaspace":
        raise UnsupportedError(f"the pre-tokenizer {pre_tokenizer['type']}")


def load_backend(file: TokenizerFile) -> CompiledBackend:
    """The compiled backend of a tokenizer; takes 0.2 s, and seconds where nothing is cached.

    Raises:
        UnsupportedError: when it cannot encode by this tokenizer.
        CompiledError: when the loops cannot be compiled or loaded.
    """
    check_kind(file.pipeline)
    pipeline = file.current_pipeline
    check_model(pipeline)
    read_rules(pipeline)
    background = BackgroundLibrary(UNIT)
    atexit.register(background.close)
    try:
        library = background.wait()
    finally:
        atexit.unregister(background.close)
    return CompiledBackend(pipeline, Functions(*(library[entry] for entry in UNIT.entries)))


def is_ready() -> bool:
    """Whether the loops are compiled already, and only have to be loaded."""
    return is_cached(UNIT)
