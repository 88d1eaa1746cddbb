"""How often each token id appears in an arm's output, against the same count of the input's texts.

Counts do not depend on the order of documents or on where blocks are cut. Special tokens (BOS, EOS) are counted apart,
since the arms disagree on them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

TEXTS_PER_BATCH = 1000
READ_IDS = 1 << 22
# The vocabulary up to which a writer uses 16 bits, and what it uses beyond: Megatron-LM's .bin, datatrove's .ds.
RAW_FORMATS = {".bin": (65_499, np.int32), ".ds": (65_536, np.uint32)}


@dataclass(frozen=True)
class InputCounts:
    """Token counts of the input by tokenizer.json alone, with text such as </s> encoded as text."""

    num_documents: int
    text_bytes: int
    histogram: np.ndarray
    special_ids: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.histogram.sum())


@dataclass(frozen=True)
class OutputCounts:
    """A program's tokens: all, special ones, and the difference of the others from the input."""

    num_tokens: int
    num_special: int
    num_missing: int
    num_foreign: int


def count_input(data_file: Path, tokenizer_dir: Path) -> InputCounts:
    """Read and encode all texts."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    special_ids = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    num_documents = text_bytes = 0
    histogram = np.zeros(vocab_size_of(tokenizer), dtype=np.int64)
    with data_file.open("rb") as lines:
        while texts := [orjson.loads(line)["text"] for line in islice(lines, TEXTS_PER_BATCH)]:
            num_documents += len(texts)
            text_bytes += sum(len(text.encode()) for text in texts)
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            histogram += _histogram([np.concatenate([encoding.ids for encoding in encodings])], len(histogram))
    return InputCounts(num_documents, text_bytes, histogram, special_ids)


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def compare(output_dir: Path, counts: InputCounts) -> OutputCounts:
    """Count the ids below `output_dir` and compare them with the input."""
    histogram = _histogram(stored_ids(output_dir, len(counts.histogram)), len(counts.histogram))
    num_tokens = int(histogram.sum())
    num_special = int(histogram[counts.special_ids].sum())
    difference = histogram - counts.histogram
    difference[counts.special_ids] = 0
    num_missing, num_foreign = (int(part.clip(min=0).sum()) for part in (-difference, difference))
    return OutputCounts(num_tokens, num_special, num_missing, num_foreign)


def stored_ids(output_dir: Path, vocab_size: int) -> Iterator[np.ndarray]:
    """The ids that a program wrote, in any of their formats."""
    for path in sorted(output_dir.rglob("*")):
        if path.suffix == ".parquet" and path.parent.name == "data":
            yield from _ids_of_batches(pq.ParquetFile(path).iter_batches(columns=["input_ids"]))
        elif path.suffix == ".arrow":
            yield from _ids_of_batches(pa.ipc.open_stream(path.open("rb")))
        elif path.suffix in RAW_FORMATS:
            yield from _raw_ids(path, vocab_size)


def _ids_of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch.column("input_ids").flatten().to_numpy(zero_copy_only=False)


def _raw_ids(path: Path, vocab_size: int) -> Iterator[np.ndarray]:
    largest_short, long_dtype = RAW_FORMATS[path.suffix]
    with path.open("rb") as file:
        while len(ids := np.fromfile(file, np.uint16 if vocab_size <= largest_short else long_dtype, READ_IDS)):
            yield ids


def _histogram(arrays: Iterable[np.ndarray], vocab_size: int) -> np.ndarray:
    total = np.zeros(vocab_size, dtype=np.int64)
    for ids in arrays:
        total += np.bincount(ids, minlength=vocab_size)
    return total
