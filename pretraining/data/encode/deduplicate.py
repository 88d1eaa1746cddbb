"""Find duplicates in a first pass over the input, which computes keys of all documents, slice by slice.

Of documents with equal keys the first in the input is kept, so the result does not depend on workers or slices. The
keys take 16 bytes per document, 152 with near duplicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretraining.data.build.working_files import read_arrays, write_arrays
from pretraining.data.encode.encoding import DocumentReader, ordered_parallel_map
from pretraining.data.encode.minhash import MinHashBands, cluster_duplicates, first_equal_rows, text_fingerprints
from pretraining.data.input.documents import CleaningReason, Document
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.reading import RawBatch

LINE_BITS = 40  # of a place as one number: the file number is in the bits above
COLUMNS = ("places", "fingerprints", "bands")
REMEDY = "delete it and run the same command again"


@dataclass(frozen=True, slots=True)
class DuplicateKeys:
    """Places and keys of documents: `places` [n, 2] has file number and line, the others are [n, k] uint64."""

    places: np.ndarray
    fingerprints: np.ndarray
    bands: np.ndarray


class KeyExtractor:
    """Computes the keys of the documents of a batch."""

    def __init__(self, reader: DocumentReader, rules: CleaningRules) -> None:
        self._reader = reader
        self._min_hash = None if rules.near_duplicates is None else MinHashBands(rules.near_duplicates)

    def no_keys(self) -> DuplicateKeys:
        """Keys of zero documents."""
        num_bands = 0 if self._min_hash is None else self._min_hash.num_bands
        return DuplicateKeys(
            np.empty((0, 2), np.int64), np.empty((0, 2), np.uint64), np.empty((0, num_bands), np.uint64)
        )

    def keys(self, batch: RawBatch) -> tuple[DuplicateKeys, int]:
        """The keys, and the bytes of the batch in its file."""
        documents = [parsed for _, parsed in self._reader.lines(batch) if isinstance(parsed, Document)]
        texts = [document.text for document in documents]
        places = np.array([[batch.file_number, document.line] for document in documents], np.int64).reshape(-1, 2)
        bands = np.empty((len(texts), 0), np.uint64) if self._min_hash is None else self._min_hash.bands(texts)
        return DuplicateKeys(places, text_fingerprints(texts), bands), batch.num_file_bytes


def write_keys(path: Path, maker: KeyExtractor, batches: Iterator[RawBatch], *, num_workers: int) -> Iterator[int]:
    """Write the keys of all documents of a slice; yields the bytes of each batch in its file."""
    keys = [maker.no_keys()]
    for made, num_bytes in ordered_parallel_map(maker.keys, batches, num_workers=num_workers):
        keys.append(made)
        yield num_bytes
    path.parent.mkdir(exist_ok=True)
    joined = _joined(keys)
    write_arrays(path, {name: getattr(joined, name) for name in COLUMNS})


def write_duplicates(path: Path, key_paths: Sequence[Path], rules: CleaningRules) -> None:
    """Decide which documents are duplicates: their `places`, the `originals` in their groups, and `is_near`."""
    keys = _joined([_read_keys(key_path) for key_path in key_paths])
    everyone = np.arange(len(keys.places))
    exact = first_equal_rows(keys.fingerprints) if rules.exact_duplicates else everyone
    near = cluster_duplicates(keys.bands) if rules.near_duplicates is not None else everyone
    first = np.where(exact != everyone, exact, near)
    duplicates = np.flatnonzero(first != everyone)
    write_arrays(
        path,
        {
            "places": keys.places[duplicates],
            "originals": keys.places[first[duplicates]],
            "is_near": exact[duplicates] == duplicates,
        },
    )


class Duplicates:
    """Duplicates and their originals; 17 bytes of memory per duplicate."""

    def __init__(self, path: Path, file_names: Sequence[str]) -> None:
        arrays = read_arrays(path, remedy=REMEDY)
        places = _as_numbers(arrays["places"])
        order = np.argsort(places, kind="stable")
        self._places = places[order]
        self._originals = _as_numbers(arrays["originals"])[order]
        self._is_near = arrays["is_near"][order]
        self._file_names = file_names

    def original_of(self, file_number: int, line: int) -> tuple[CleaningReason, str] | None:
        """Why the document at this place is removed, and the place of its original; None if it is kept."""
        place = (file_number << LINE_BITS) + line
        found = int(np.searchsorted(self._places, place))
        if found == len(self._places) or self._places[found] != place:
            return None
        file, line = divmod(int(self._originals[found]), 1 << LINE_BITS)
        return ("near_duplicate" if self._is_near[found] else "duplicate"), f"{self._file_names[file]}:{line}"


def _as_numbers(places: np.ndarray) -> np.ndarray:
    """One number per pair of file and line, in the same order."""
    return (places[:, 0] << LINE_BITS) + places[:, 1]


def _joined(keys: Sequence[DuplicateKeys]) -> DuplicateKeys:
    return DuplicateKeys(*(np.concatenate([getattr(k, name) for k in keys]) for name in COLUMNS))


def _read_keys(path: Path) -> DuplicateKeys:
    arrays = read_arrays(path, remedy=REMEDY)
    return DuplicateKeys(*(arrays[name] for name in COLUMNS))
