"""Write one slice of the input, section by section, so that it can be resumed after a kill at any time.

A section ends at `tokens_per_shard` tokens: every shard is closed, fsynced and hashed, and only then progress.json is
replaced. It names the finished files, the counts, the position in the input, and the file with the tokens that are in
no block yet. Files that it does not name are unfinished and are removed.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pretraining.data.build.prepared_batch import PreparedBatch, document_rows
from pretraining.data.build.progress import (
    PROGRESS_NAME,
    FileSkips,
    SliceProgress,
    SplitProgress,
    read_progress,
    remedy_for,
    skip_record,
)
from pretraining.data.build.working_files import read_arrays, write_arrays
from pretraining.data.encode.encoded import EncodedBatch
from pretraining.data.encode.splits import SPLITS, Split
from pretraining.data.input.documents import CLEANED
from pretraining.data.store.blocks import Blocks, divide_blocks
from pretraining.data.store.manifest import StoreSpec
from pretraining.data.store.packing import SEGMENT_COLUMNS, TOKENS_PER_ROW_GROUP, DocumentSegments, Packer, make_packer
from pretraining.data.store.shards import ShardThreads, ShardWriter, block_schema, block_table
from pretraining.system.files import fsync, sha256_of

if TYPE_CHECKING:
    import jsonlines

DOCUMENTS_PER_ROW_GROUP = 1 << 16
FIRST_ID_BITS = 40  # document n of slice s has id s * 2^40 + n, so slices are independent


class SplitWriter:
    """Packs and writes the documents of one split in one section."""

    def __init__(
        self, folder: Path, split: Split, section: int, packer: Packer, schema: pa.Schema, threads: ShardThreads
    ) -> None:
        self._packer = packer
        self._schema = schema
        self._shard = ShardWriter(folder, f"{split}-{section:05d}.parquet", threads)
        self._pending: list[Blocks] = []
        self._num_pending_tokens = 0

    def add(self, pieces: DocumentSegments, progress: SplitProgress) -> None:
        """Append encoded documents."""
        progress.num_documents += len(pieces.document_ids)
        progress.num_tokens += pieces.num_tokens
        self.add_blocks(self._packer.add(pieces), progress)

    def add_blocks(self, blocks: Blocks, progress: SplitProgress) -> None:
        """Append finished blocks."""
        progress.num_blocks += len(blocks.input_ids)
        progress.num_padding_tokens += int(blocks.num_padding_tokens.sum())
        for part in divide_blocks(blocks, TOKENS_PER_ROW_GROUP):
            self._pending.append(part)
            self._num_pending_tokens += part.input_ids.size
            if self._num_pending_tokens + part.input_ids.shape[1] > TOKENS_PER_ROW_GROUP:
                self._write_row_group()

    def write_rest(self, progress: SplitProgress) -> None:
        """Have all blocks written for which there are ids; `close` does it, too."""
        self.add_blocks(self._packer.complete(), progress)
        if self._pending:
            self._write_row_group()

    def close(self, progress: SplitProgress) -> None:
        """Finish the section's shard."""
        self.write_rest(progress)
        progress.shards += self._shard.close()

    def _write_row_group(self) -> None:
        self._shard.write(partial(block_table, self._pending, self._schema))
        self._pending, self._num_pending_tokens = [], 0


class SliceWriter:
    """Writes the encoded batches of one slice in input order, from `progress.position` on."""

    def __init__(self, folder: Path, origin: StoreSpec, *, slice_number: int, only_reference: bool) -> None:
        self._threads = ShardThreads()
        self._folder = folder
        self._origin = origin
        self._first_id = slice_number << FIRST_ID_BITS
        self._schema = block_schema(origin.block_length, origin.dtype)
        self._packers = {split: packer_of(origin) for split in SPLITS}
        self.progress = read_progress(folder) or SliceProgress()
        self.progress.only_reference &= only_reference
        self._remove_unfinished()
        if self.progress.carried_file is not None:
            for split, pieces in read_carried(folder / self.progress.carried_file).items():
                self._packers[split].pending = pieces
        self._begin_section()

    def _remove_unfinished(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name not in self.progress.file_names() | {PROGRESS_NAME}:
                path.unlink()

    def _begin_section(self) -> None:
        section = self.progress.num_sections
        self._splits = {
            split: SplitWriter(self._folder, split, section, self._packers[split], self._schema, self._threads)
            for split in SPLITS
        }
        self._documents = ShardWriter(self._folder, f"documents-{section:05d}.parquet", self._threads)
        self._batches: list[tuple[int, EncodedBatch]] = []  # and the id of the first document
        self._num_document_rows = 0
        self._skipped_path = self._folder / f"skipped-{section:05d}.jsonl"
        self._skipped_file: jsonlines.Writer | None = None
        self._num_tokens_before = self.progress.num_tokens

    def add(self, prepared: PreparedBatch) -> None:
        """Append a batch, and end the section if it is full."""
        progress, batch = self.progress, prepared.batch
        first_id = self._first_id + progress.num_documents
        for split, pieces in prepared.pieces.items():
            numbered = replace(pieces, document_ids=first_id + pieces.document_ids)
            self._splits[split].add(numbered, progress.splits[split])
        progress.num_documents += len(batch.lengths)
        progress.num_file_bytes += batch.num_file_bytes
        progress.position = batch.end
        self._add_document_rows(batch, first_id)
        self._add_skipped(batch)
        if progress.num_tokens - self._num_tokens_before >= self._origin.tokens_per_shard:
            self._end_section()

    def finish(self) -> SliceProgress:
        """End the last section and the slice."""
        self._count_unlisted()
        self.progress.is_done = True
        self._end_section()
        return self.progress

    def close(self) -> None:
        """End the threads, which otherwise write on into what the next writer of the slice has started."""
        self._threads.close()

    def _add_document_rows(self, batch: EncodedBatch, first_id: int) -> None:
        if len(batch.lengths):
            self._batches.append((first_id, batch))
            self._num_document_rows += len(batch.lengths)
        if self._num_document_rows >= DOCUMENTS_PER_ROW_GROUP:
            self._write_document_rows()

    def _write_document_rows(self) -> None:
        if self._batches:
            self._documents.write(partial(document_rows, self._batches))
        self._batches, self._num_document_rows = [], 0

    def _add_skipped(self, batch: EncodedBatch) -> None:
        progress = self.progress
        if progress.skips_of_file.file != batch.path:
            self._count_unlisted()
            progress.skips_of_file = FileSkips(batch.path)
        for line in batch.skipped:
            progress.skipped_lines[line.reason] = progress.skipped_lines.get(line.reason, 0) + line.num_lines
            record = skip_record(batch.path, line)
            if progress.first_unreadable is None and line.reason not in CLEANED:
                progress.first_unreadable = record
            if progress.skips_of_file.lists(line):
                self._write_skipped(record)

    def _count_unlisted(self) -> None:
        """Add the numbers of lines of a file that are not listed."""
        found = self.progress.skips_of_file
        for reason, num_lines in found.unlisted.items():
            self._write_skipped({"file": found.file, "reason": reason, "num_lines_not_listed": num_lines})

    def _write_skipped(self, record: dict[str, Any]) -> None:
        if self._skipped_file is None:
            import jsonlines  # 20 ms, for the runs that skip a line

            self._skipped_file = jsonlines.open(self._skipped_path, "w")
        self._skipped_file.write(record)

    def _end_section(self) -> None:
        progress = self.progress
        self._write_document_rows()
        for split, writer in self._splits.items():
            writer.write_rest(progress.splits[split])
        for split, writer in self._splits.items():
            writer.close(progress.splits[split])
        progress.documents += self._documents.close()
        if self._skipped_file is not None:
            self._skipped_file.close()
            fsync(self._skipped_path)
            progress.skipped_files.append(self._skipped_path.name)
            progress.other_hashes[self._skipped_path.name] = sha256_of(self._skipped_path)
        before = progress.carried_file
        progress.carried_file = f"carried-{progress.num_sections:05d}.npz"
        write_carried(self._folder / progress.carried_file, {s: p.pending for s, p in self._packers.items()})
        progress.other_hashes.pop(before or "", None)
        progress.other_hashes[progress.carried_file] = sha256_of(self._folder / progress.carried_file)
        progress.num_sections += 1
        fsync(self._folder)
        progress.write(self._folder)
        if before is not None:
            (self._folder / before).unlink()
        self._begin_section()


def packer_of(origin: StoreSpec) -> Packer:
    """The packer of a block store; padding is EOS, which the loss ignores."""
    return make_packer(
        origin.packing, block_length=origin.block_length, dtype=origin.dtype, padding_id=origin.token_rules.eos_token_id
    )


def write_carried(path: Path, carried: dict[Split, DocumentSegments]) -> None:
    """Write the tokens that are in no block yet."""
    write_arrays(
        path, {f"{split}-{name}": getattr(p, name) for split, p in carried.items() for name in SEGMENT_COLUMNS}
    )


def read_carried(path: Path) -> dict[Split, DocumentSegments]:
    """Read what `write_carried` wrote."""
    arrays = read_arrays(path, remedy=remedy_for(path.parent))
    return {split: DocumentSegments(*(arrays[f"{split}-{name}"] for name in SEGMENT_COLUMNS)) for split in SPLITS}
