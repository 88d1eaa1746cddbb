"""Keys by which exact and near duplicates are found, and the first document of each group of equal keys.

Keys depend only on the text, so any number of workers may compute them. `first_equal_rows` and `cluster_duplicates`
take the keys of all documents in input order.

Near duplicates are found by MinHash and banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets,
section 3.4): the similarity of two texts is the Jaccard index of their sets of shingles of 5 consecutive words, and
texts that share a band are duplicates. As in datatrove they are not compared again, which would take 1 KB per document
instead of 136 bytes: at the threshold about half of the pairs are found, the same ones in each run.
"""

import hashlib
import re
import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pretraining.data.encode.key_tables import FINGERPRINT_BYTES
from pretraining.data.encode.normalize_bytes import UNSPACED_RANGES
from pretraining.data.encode.text_keys import SHINGLE_WORDS
from pretraining.system.cores import usable_cores

NUM_HASHES = 256  # per text, at most; with 512 the error is an eighth smaller, and keys are 65 % larger
UNSPACED = "".join(f"{first}-{last}" for first, last in UNSPACED_RANGES)
MAX_SORTING_THREADS = 8
WORD = re.compile(rf"[^\W{UNSPACED}]+|[{UNSPACED}]")


def normalized(text: str) -> str:
    """The text in the form that is compared: NFC, case folded, runs of whitespace one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def text_fingerprints(texts: list[str]) -> np.ndarray:
    """128-bit BLAKE2b hashes of the normalized texts, shape [n, 2], uint64."""
    digests = [
        hashlib.blake2b(normalized(text).encode("utf-8"), digest_size=FINGERPRINT_BYTES).digest() for text in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64)


class MinHashBands:
    """Band hashes of texts: two texts of Jaccard similarity s share one with probability 1 - (1 - s^rows)^bands.

    Bands and rows minimize the sum of false positives and false negatives, as in datasketch's MinHashLSH.

    >>> minhash = MinHashBands(0.8)
    >>> minhash.num_bands, minhash.num_rows
    (17, 15)
    >>> [round(1 - (1 - s**minhash.num_rows) ** minhash.num_bands, 2) for s in (0.6, 0.7, 0.8, 0.9)]
    [0.01, 0.08, 0.46, 0.98]
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        best = MinHashLSH(threshold=threshold, num_perm=NUM_HASHES)
        self.num_bands, self.num_rows = best.b, best.r
        # The hash functions h -> factor * h + addend of the bands; datasketch has a few more.
        self.factors, self.addends = MinHash(NUM_HASHES, seed=1, scheme="affine32").permutations[:, : best.b * best.r]

    def bands(self, texts: list[str]) -> np.ndarray:
        """Band hashes of each text, shape [n, num_bands], uint64; 6 MB/s."""
        from datasketch import MinHash

        signatures = MinHash.generator(
            map(_shingles, texts), num_perm=NUM_HASHES, seed=1, hashfunc=zlib.crc32, scheme="affine32"
        )
        band_bytes = 4 * self.num_rows  # a hash has 32 bits
        starts = range(0, self.num_bands * band_bytes, band_bytes)
        keys = [
            hashlib.blake2b(hashes[start : start + band_bytes], digest_size=8).digest()
            for hashes in (signature.hashvalues.tobytes() for signature in signatures)
            for start in starts
        ]
        return np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, self.num_bands).astype(np.uint64)


def _shingles(text: str) -> set[bytes]:
    """Runs of 5 words of a text, or the text if it has fewer; emoji or punctuation alone are a word."""
    text = normalized(text)
    words = WORD.findall(text) or [text]
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {"\n".join(words[start : start + SHINGLE_WORDS]).encode("utf-8") for start in range(last)}


def first_equal_rows(fingerprints: np.ndarray) -> np.ndarray:
    """For each row of [n, k] keys, the index of the first row that is equal in all k: shape [n], int64.

    Takes 40 bytes per row in addition to the keys, and 0.1 s for a million rows; copies take 60 bytes and 0.4 s.
    """
    first = np.arange(len(fingerprints))
    rows = np.unique(np.concatenate(_equal_pairs(fingerprints[:, 0])))  # in all other rows the first key is alone
    columns = np.ascontiguousarray(fingerprints[rows].T)
    order = np.lexsort(columns)
    is_new = np.ones(len(order), dtype=bool)
    ordered = columns[:, order]
    is_new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    starts = np.flatnonzero(is_new)
    groups = np.diff(starts, append=len(order))
    first[rows[order]] = np.repeat(rows[order[starts]], groups)  # the sort is stable
    return first


def cluster_duplicates(keys: np.ndarray) -> np.ndarray:
    """For each row of [n, k] keys, the first row of its group: shape [n], int64.

    Rows with the same key in the same column are in one group, transitively. A core sorts a column of a million rows in
    0.06 s; each of up to 8 cores takes 40 bytes per row.

    >>> cluster_duplicates(np.array([[1, 2], [3, 4], [3, 2]], dtype=np.uint64)).tolist()
    [0, 0, 0]
    """
    firsts = np.arange(len(keys))
    with ThreadPoolExecutor(min(MAX_SORTING_THREADS, usable_cores())) as executor:
        for left, right in executor.map(_equal_pairs, keys.T):
            _union(firsts, left, right)
    return _find_roots(firsts, np.arange(len(keys)))


def _equal_pairs(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows with the same key, which connect all rows of a key."""
    order = np.argsort(column)
    ordered = column[order]
    places = np.flatnonzero(ordered[1:] == ordered[:-1])
    return order[places], order[places + 1]


def _union(parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join the groups of each pair of rows, in rounds: of two roots the lower becomes the parent of the higher.

    `parents` [n] leads from each row to the lowest of its group (Liu and Tarjan, Simple Concurrent Labeling Algorithms
    for Connected Components, 2019).
    """
    while len(left):
        left_roots, right_roots = _find_roots(parents, left), _find_roots(parents, right)
        np.minimum.at(parents, np.maximum(left_roots, right_roots), np.minimum(left_roots, right_roots))
        apart = left_roots != right_roots
        left, right = left[apart], right[apart]


def _find_roots(parents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The root of each row; paths are compressed."""
    roots = parents[rows]
    while not np.array_equal(roots, above := parents[roots]):
        roots = above
    parents[rows] = roots
    return roots
