"""Encode documents on all cores: threads encode batches, which come out in input order.

Parsing and hashing hold Python's lock for a small part of the time, and the tokenizer library releases it, so no text
is copied between processes.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from pretraining.data.encode.encoded import DocumentMetadata, EncodedBatch, document_metadata
from pretraining.data.encode.line_encoder import LineEncoder
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.encode.token_documents import IdDecoder, join_ids
from pretraining.data.input.documents import CleaningReason, Document, RawLine, ReadingOptions, SkippedLine, skipped
from pretraining.data.input.filters import TextFilter
from pretraining.data.input.reading import BATCH_BYTES, RawBatch, parse_lines
from pretraining.data.tokenize.backends import FlatIds
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, id_dtype

NICENESS = 5  # a third of the share of a thread with 0
AHEAD = 24  # 50 MB of input, which two cores encode in 0.5 s: as long as the end of a shard takes
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class DocumentReader:
    """Parses the lines of a batch and filters their texts; several threads may use it."""

    options: ReadingOptions
    text_filter: TextFilter

    def lines(self, batch: RawBatch) -> Iterator[tuple[RawLine, Document | SkippedLine]]:
        """Each line of `batch` with its document, or why it is skipped."""
        for raw, parsed in parse_lines(batch, self.options):
            problem = self.text_filter.problem(parsed.text) if isinstance(parsed, Document) else None
            yield raw, parsed if problem is None else skipped(raw, problem)


def no_original(_file_number: int, _line: int) -> None:
    """That no document is a duplicate; see `BatchEncoder`."""


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes raw batches, and empties their lists of parts; several threads may use it.

    `original_of` gives why the document of a file number and line is removed as a duplicate, and the place of its
    original; None if it is kept.
    """

    reader: DocumentReader
    splits: SplitAssigner
    tokenizer: DocumentTokenizer
    original_of: Callable[[int, int], tuple[CleaningReason, str] | None] = no_original

    def encode(self, batch: RawBatch) -> EncodedBatch:
        """Parse, filter, split and encode the lines of `batch`."""
        compiled = self.tokenizer.compiled
        if compiled is not None and self._keeps_all and self._lines.supports(batch):
            return self._lines.encode(batch, compiled)
        num_bytes = sum(part.num_bytes for part in batch.parts)
        documents, skipped_lines = self._divide(batch)
        batch.parts.clear()  # one of 200 MB is not needed while its text is encoded
        rows, flat = self._encode(documents, batch)
        return EncodedBatch(
            path=batch.file.path,
            rows=rows,
            ids=flat.ids.astype(id_dtype(self.tokenizer.vocab_size), copy=False),
            lengths=flat.lengths,
            skipped=skipped_lines,
            end=batch.end,
            num_file_bytes=batch.num_file_bytes,
            num_bytes=num_bytes,
        )

    def _divide(self, batch: RawBatch) -> tuple[list[Document], list[SkippedLine]]:
        documents: list[Document] = []
        skipped_lines: list[SkippedLine] = []
        for raw, parsed in self.reader.lines(batch):
            copy = self.original_of(batch.file_number, raw.number)
            if isinstance(parsed, SkippedLine):
                skipped_lines.append(parsed)
            elif copy is not None:
                skipped_lines.append(skipped(raw, copy[0], copy_of=copy[1]))
            else:
                documents.append(parsed)
        return documents, skipped_lines

    def _encode(self, documents: list[Document], batch: RawBatch) -> tuple[DocumentMetadata, FlatIds]:
        """The columns and the ids of documents, which are gone afterwards."""
        own, default = batch.file.source, batch.file.default_source
        plain = None
        utf8 = [document.utf8 for document in documents]
        if batch.file.format == "tokens":
            plain = join_ids(documents, bos_token_id=self.tokenizer.rules.bos_token_id)
            utf8 = self._decoder.texts(plain)
        sources = [own or document.source or default for document in documents]
        rows = document_metadata(documents, sources, utf8, self.splits.numbers_of(self.splits.digests(utf8)))
        del utf8
        texts = [document.text for document in documents]
        documents.clear()
        return rows, self.tokenizer.encode(texts) if plain is None else self.tokenizer.surround(plain)

    @cached_property
    def _lines(self) -> LineEncoder:
        return LineEncoder(self.reader.options, self.splits, self.tokenizer)

    @property
    def _keeps_all(self) -> bool:
        return self.original_of is no_original and self.reader.text_filter.keeps_all

    @cached_property
    def _decoder(self) -> IdDecoder:
        return IdDecoder(self.tokenizer)


def bounded_parallel_map(
    work: Callable[[Item], Result],
    items: Iterator[Item],
    *,
    num_workers: int,
    cost: Callable[[Item], int],
    max_cost: int,
) -> Iterator[Result]:
    """Apply `work` to each item on `num_workers` threads, in the order of the items.

    The items in progress cost `max_cost` at most together; one that costs more is alone.
    """
    pending: deque[tuple[Future[Result], int]] = deque()
    total = 0
    with ThreadPoolExecutor(num_workers, thread_name_prefix="encode", initializer=_yield_to_others) as executor:
        try:
            for item in items:
                item_cost = cost(item)
                while pending and total + item_cost > max_cost:
                    future, finished = pending.popleft()
                    yield future.result()
                    total -= finished
                pending.append((executor.submit(work, item), item_cost))
                total += item_cost
            while pending:
                yield pending.popleft()[0].result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _yield_to_others() -> None:
    """Give this thread less of a busy core than those that take what it makes: nothing is left over at the end."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def ordered_parallel_map(
    work: Callable[[RawBatch], Result], batches: Iterator[RawBatch], *, num_workers: int
) -> Iterator[Result]:
    """Apply `work` to each batch in order, up to AHEAD batches before the caller takes them."""
    max_cost = (num_workers + AHEAD) * BATCH_BYTES
    return bounded_parallel_map(
        work,
        batches,
        num_workers=num_workers,
        cost=lambda batch: batch.memory_bytes,
        max_cost=max_cost,
    )
