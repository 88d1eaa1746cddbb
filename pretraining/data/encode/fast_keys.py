"""Which way computes the keys of texts: compiled loops, or, until those are there and without them, Python.

Both give the same keys, so a run may change from one to the other between two batches.
"""

import contextlib
import logging
import threading
import unicodedata

import numpy as np

from pretraining.data.encode.key_tables import Keys, Tables, Texts, blake_states, minhash_tables, scratch_for
from pretraining.data.encode.minhash import MinHashBands, text_fingerprints
from pretraining.data.encode.normalize_bytes import character_tables
from pretraining.system.compiled import words
from pretraining.system.compiled.cache import BackgroundLibrary, is_cached
from pretraining.system.compiled.library import CompiledLibrary
from pretraining.system.compiled.unit import CompiledError, CompiledUnit

logger = logging.getLogger(__name__)

PACKAGE = "pretraining.data.encode"
MODULES = (words.__name__, f"{PACKAGE}.blake2b", f"{PACKAGE}.normalize_bytes", f"{PACKAGE}.text_keys")
UNIT = CompiledUnit(MODULES, ("text_keys",))
# Input from which on the loops are loaded, which takes 0.5 s, and compiled, which takes 10 s in another process;
# meanwhile Python computes near-duplicate keys at 3 MB/s, and fingerprints alone at 60 MB/s.
LOAD_BYTES = {True: 2 << 20, False: 64 << 20}
COMPILE_BYTES = {True: 32 << 20, False: 1 << 30}
# Every way through the loops: no word, few words, long words, whitespace, case, NFC, scripts without spaces.
PROBES = [
    "",
    " \n ",
    "🚆 !?",
    "One word",
    " The quick\tbrown fox \u3000jumped over the lazy dog_2 \n",
    "Straße, ΣΊΣΥΦΟΣ, ΐ, İstanbul, ﬃ, Ⅷ, ǅ: " * 7,
    "caf\u0065\u0301 au lait, \u1112\u1161\u11ab \u0915\u093c q\u0323\u0307",
    "今天 the 早上市政府 宣布x将在 เมื่อเช้านี้ 𠀀𝐀𝟘",
    "x" * 700 + " y" * 5000,
]


class KeyFunction:
    """Computes fingerprints and, if `near` is given, band hashes; several threads may use it."""

    def __init__(self, near: MinHashBands | None, num_bytes: int) -> None:
        self._near = near
        self._num_bytes = num_bytes
        finds_near = near is not None
        can_load = num_bytes >= LOAD_BYTES[finds_near] and is_cached(UNIT)
        has_use = can_load or num_bytes >= COMPILE_BYTES[finds_near]
        self._background = BackgroundLibrary(UNIT) if has_use else None
        self._compiled: CompiledKeys | None = None
        self._lock = threading.Lock()
        if self._background is not None and can_load:
            with contextlib.suppress(CompiledError):
                self._background.wait()

    def __reduce__(self) -> tuple[type["KeyFunction"], tuple[MinHashBands | None, int]]:
        return type(self), (self._near, self._num_bytes)  # another process loads the loops itself

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Fingerprints [n, 2] and band hashes [n, num_bands] of texts, uint64."""
        if self._background is not None and self._lock.acquire(blocking=False):
            try:
                self._adopt()
            finally:
                self._lock.release()
        return keys_in_python(texts, self._near) if self._compiled is None else self._compiled(texts)

    def close(self) -> None:
        """End a compilation that is still at work."""
        if self._background is not None:
            self._background.close()

    def _adopt(self) -> None:
        """Use the loops from now on, if they are there and right."""
        background = self._background
        if background is None or (background.library is None and background.problem is None):
            return
        self._background = None
        problem = background.problem
        if background.library is not None:
            compiled = CompiledKeys(background.library, self._near)
            expected, found = keys_in_python(PROBES, self._near), compiled(PROBES)
            if all(map(np.array_equal, expected, found)):
                self._compiled = compiled
                return
            problem = "their keys are wrong on this machine"
        logger.warning("duplicates are found in Python, which is slower: compiled loops cannot be used (%s)", problem)


class CompiledKeys:
    """Keys by compiled loops, which release Python's lock: 50 MB/s per core with near duplicates, 200 without."""

    def __init__(self, library: CompiledLibrary, near: MinHashBands | None) -> None:
        self._text_keys = library["text_keys"]
        self._num_bands = 0 if near is None else near.num_bands
        self._characters = character_tables()
        none = np.empty(0, np.uint32)
        self._minhash = minhash_tables(*((none, none) if near is None else (near.factors, near.addends)))

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same as `keys_in_python`."""
        keys = self._keys(texts, is_nfc=False)
        others = np.flatnonzero(keys.is_done == 0)
        if len(others):
            more = self._keys([unicodedata.normalize("NFC", texts[number]) for number in others], is_nfc=True)
            keys.fingerprints[others], keys.bands[others] = more.fingerprints, more.bands
        return keys.fingerprints, keys.bands

    def _keys(self, texts: list[str], *, is_nfc: bool) -> Keys:
        """The keys, with a row for each text."""
        encoded = [text.encode("utf-8") for text in texts]
        lengths = np.array([len(text) for text in encoded], np.int64)
        number = len(texts)
        keys = Keys(
            np.empty(2 * number, np.uint64), np.empty(self._num_bands * number, np.uint64), np.empty(number, np.uint8)
        )
        self._text_keys(
            Texts(np.frombuffer(b"".join(encoded) or b"\0", np.uint8), np.cumsum(lengths)),
            int(is_nfc),
            self._num_bands,
            Tables(self._characters, self._minhash, blake_states()),
            scratch_for(int(lengths.max(initial=0)), len(self._minhash.factors)),
            keys,
        )
        return Keys(keys.fingerprints.reshape(number, 2), keys.bands.reshape(number, self._num_bands), keys.is_done)


def keys_in_python(texts: list[str], near: MinHashBands | None) -> tuple[np.ndarray, np.ndarray]:
    """Fingerprints [n, 2] and band hashes [n, num_bands] of texts, uint64; none without `near`."""
    bands = np.empty((len(texts), 0), np.uint64) if near is None else near.bands(texts)
    return text_fingerprints(texts), bands
