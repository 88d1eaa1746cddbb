"""Write any slice of a partial store, in any process."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pretraining.cli.progress import Progress
from pretraining.data.build.checks import EarlyCheck
from pretraining.data.build.partial_store import REFERENCE_ONLY_NAME, slice_dir
from pretraining.data.build.prepared_batch import PreparedBatch, prepare
from pretraining.data.build.progress import SliceProgress, read_progress
from pretraining.data.build.slice_writer import SliceWriter
from pretraining.data.encode.deduplicate import KeyExtractor, write_keys
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader, ordered_parallel_map
from pretraining.data.input.files import InputFile
from pretraining.data.input.reading import RawBatch, read_batches
from pretraining.data.input.slices import FileRange
from pretraining.data.store.manifest import StoreSpec
from pretraining.data.tokenize.backends import BackendDiffersError
from pretraining.data.tokenize.tokenizer import DocumentTokenizer

MIN_THREADS = 2  # of a process: one parses and hashes while the other encodes


@dataclass(frozen=True)
class Work:
    """Everything needed to write any slice of the partial store in `folder`."""

    folder: Path
    files: Sequence[InputFile]
    slices: Sequence[Sequence[FileRange]]
    origin: StoreSpec
    tokenizer: DocumentTokenizer
    reader: DocumentReader
    num_workers: int
    max_skipped_fraction: float

    @property
    def fast_backend_was_wrong(self) -> bool:
        """Whether any process, also of an earlier run, found a document that the fast backend encodes wrong."""
        return (self.folder / REFERENCE_ONLY_NAME).exists()

    def progress_of(self, number: int) -> SliceProgress | None:
        """The progress of slice `number`."""
        return read_progress(slice_dir(self.folder, number))

    def started_slices(self) -> list[SliceProgress]:
        """The progress of the slices that have any."""
        return [made for number in range(len(self.slices)) if (made := self.progress_of(number)) is not None]

    def shared_by(self, num_processes: int) -> "Work":
        """The same work with one process's part of the threads."""
        return replace(self, num_workers=max(self.num_workers // num_processes, min(MIN_THREADS, self.num_workers)))


class Meter(Protocol):
    """Counts what is done in slices: bytes of the input, documents, tokens."""

    def skip(self, num_bytes: int, num_documents: int) -> None:
        """Count what an earlier run has done."""
        ...

    def add(self, num_bytes: int, num_documents: int, num_tokens: int) -> None:
        """Count what was just done."""
        ...


class SliceMeter:
    """Shows the counts of all slices as progress, or the name of an `activity` that gives no tokens.

    `advance` is called each time.
    """

    def __init__(self, progress: Progress, *, advance: Callable[[], None], activity: str | None = None) -> None:
        self._progress = progress
        self._advance = advance
        self._activity = activity
        self._num_documents = 0
        self._num_tokens = 0

    def skip(self, num_bytes: int, num_documents: int) -> None:
        """Count what an earlier run has done."""
        self._progress.skip(num_bytes)
        self._num_documents += num_documents

    def add(self, num_bytes: int, num_documents: int, num_tokens: int) -> None:
        """Count what was just done."""
        self._num_documents += num_documents
        self._num_tokens += num_tokens
        speed = self._num_tokens / self._progress.elapsed_seconds
        figures = self._activity or f"{self._num_documents:,} documents, {speed:,.0f} tokens/s"
        self._progress.advance(num_bytes, figures)
        self._advance()


def make_slice(work: Work, encoder: BatchEncoder, number: int, meter: Meter) -> None:
    """Write one slice from its last finished section on."""
    if work.fast_backend_was_wrong and work.tokenizer.backend_name != "reference":
        return  # the reference writes it, in the next round
    folder = slice_dir(work.folder, number)
    is_reference = work.tokenizer.backend_name == "reference"
    new_writer = SliceWriter(folder, work.origin, slice_number=number, only_reference=is_reference)
    with contextlib.closing(new_writer) as writer:
        try:
            _write_slice(work, encoder, number, writer, meter)
        except BackendDiffersError as error:
            (work.folder / REFERENCE_ONLY_NAME).write_text(str(error), encoding="utf-8")


def _write_slice(work: Work, encoder: BatchEncoder, number: int, writer: SliceWriter, meter: Meter) -> None:
    made = writer.progress
    meter.skip(made.num_file_bytes, made.num_documents)
    batches = read_batches(work.files, work.slices[number], made.position, work.origin.reading_options)
    early_check = EarlyCheck(work.origin, work.max_skipped_fraction)

    def encode(batch: RawBatch) -> PreparedBatch:
        return prepare(encoder.encode(batch))

    for prepared in ordered_parallel_map(encode, batches, num_workers=work.num_workers):
        batch = prepared.batch
        writer.add(prepared)
        early_check.see(batch, made)
        meter.add(batch.num_file_bytes, len(batch.lengths), int(batch.lengths.sum()))
    writer.finish()


def make_keys(work: Work, maker: KeyExtractor, paths: Sequence[Path], number: int, meter: Meter) -> None:
    """Write the keys by which duplicates are found in one slice to its path."""
    batches = read_batches(work.files, work.slices[number], None, work.origin.reading_options)
    for num_bytes in write_keys(paths[number], maker, batches, num_workers=work.num_workers):
        meter.add(num_bytes, 0, 0)
