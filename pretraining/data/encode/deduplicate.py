"""Find duplicates in a first pass over the input, which computes keys of all documents, slice by slice.

Of documents with equal keys the first in the input is kept, so the result does not depend on workers or slices. The
keys take 16 bytes per document, 152 with near duplicates.
"""

import bisect
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pretraining.data.build.working_files import read_arrays, write_arrays
from pretraining.data.encode.encoding import DocumentReader, ordered_parallel_map
from pretraining.data.encode.fast_keys import KeyFunction
from pretraining.data.encode.minhash import MinHashBands, cluster_duplicates, first_equal_rows
from pretraining.data.input.documents import CleaningReason, Document
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.reading import RawBatch

LINE_BITS = 40  # of a place as one number: the file number is in the bits above
# Keys of n documents: `places` [n, 2] has file number and line, `fingerprints` and `bands` [n, k] are uint64.
DuplicateKeys = dict[str, np.ndarray]
REMEDY = "delete it and run the same command again"


class KeyExtractor:
    """Computes the keys of the documents of a batch; `num_bytes` is the size of the input."""

    def __init__(self, reader: DocumentReader, rules: CleaningRules, num_bytes: int) -> None:
        self._reader = reader
        self._rules = rules
        self._num_bytes = num_bytes

    def __reduce__(self) -> tuple[type["KeyExtractor"], tuple[DocumentReader, CleaningRules, int]]:
        """Pickle the rules: another process loads the compiled loops itself."""
        return KeyExtractor, (self._reader, self._rules, self._num_bytes)

    @cached_property
    def _keys_of_texts(self) -> KeyFunction:
        threshold = self._rules.near_duplicates
        return KeyFunction(None if threshold is None else MinHashBands(threshold), self._num_bytes)

    def keys(self, batch: RawBatch) -> tuple[DuplicateKeys, int]:
        """The keys, and the bytes of the batch in its file."""
        documents = [parsed for _, parsed in self._reader.lines(batch) if isinstance(parsed, Document)]
        return self.keys_of(batch.file_number, documents), batch.num_file_bytes

    def keys_of(self, file_number: int, documents: Sequence[Document]) -> DuplicateKeys:
        """The keys of documents of one file."""
        fingerprints, bands = self._keys_of_texts([document.text for document in documents])
        places = np.array([[file_number, document.line] for document in documents], np.int64).reshape(-1, 2)
        return {"places": places, "fingerprints": fingerprints, "bands": bands}

    def close(self) -> None:
        """End what still works for this in the background."""
        if "_keys_of_texts" in vars(self):
            self._keys_of_texts.close()


def write_keys(path: Path, maker: KeyExtractor, batches: Iterator[RawBatch], *, num_workers: int) -> Iterator[int]:
    """Write the keys of all documents of a slice; yields the bytes of each batch in its file."""
    keys = [maker.keys_of(0, [])]
    for made, num_bytes in ordered_parallel_map(maker.keys, batches, num_workers=num_workers):
        keys.append(made)
        yield num_bytes
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, _joined(keys))


def write_duplicates(path: Path, key_paths: Sequence[Path], rules: CleaningRules) -> None:
    """Decide which documents are duplicates: their `places`, the `originals` in their groups, and `is_near`."""
    keys = _joined([read_arrays(key_path, remedy=REMEDY) for key_path in key_paths])
    places = keys["places"]
    everyone = np.arange(len(places))
    exact = first_equal_rows(keys["fingerprints"]) if rules.exact_duplicates else everyone
    near = cluster_duplicates(keys["bands"]) if rules.near_duplicates is not None else everyone
    first = np.where(exact != everyone, exact, near)
    duplicates = np.flatnonzero(first != everyone)
    is_near = exact[duplicates] == duplicates
    originals = places[first[duplicates]]
    write_arrays(path, {"places": places[duplicates], "originals": originals, "is_near": is_near})


class Duplicates:
    """Duplicates and their originals; 17 bytes of memory per duplicate."""

    def __init__(self, path: Path, file_names: Sequence[str]) -> None:
        self._path = path
        arrays = read_arrays(path, remedy=REMEDY)
        places = _as_numbers(arrays["places"])
        order = np.argsort(places, kind="stable")
        self._places = places[order].data  # bisected in 1 us, where a call of NumPy takes 2.4
        self._originals = _as_numbers(arrays["originals"])[order]
        self._is_near = arrays["is_near"][order]
        self._file_names = file_names

    def __reduce__(self) -> tuple[type["Duplicates"], tuple[Path, Sequence[str]]]:
        """Pickle the path: another process reads the file itself."""
        return Duplicates, (self._path, self._file_names)

    def original_of(self, file_number: int, line: int) -> tuple[CleaningReason, str] | None:
        """Why the document at this place is removed, and the place of its original; None if it is kept."""
        place = (file_number << LINE_BITS) + line
        found = bisect.bisect_left(self._places, place)
        if found == len(self._places) or self._places[found] != place:
            return None
        file, line = divmod(int(self._originals[found]), 1 << LINE_BITS)
        return ("near_duplicate" if self._is_near[found] else "duplicate"), f"{self._file_names[file]}:{line}"


def _as_numbers(places: np.ndarray) -> np.ndarray:
    """One number per pair of file and line, in the same order."""
    return (places[:, 0] << LINE_BITS) + places[:, 1]


def _joined(keys: Sequence[DuplicateKeys]) -> DuplicateKeys:
    return {name: np.concatenate([k[name] for k in keys]) for name in ("places", "fingerprints", "bands")}
