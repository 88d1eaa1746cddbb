"""Write a block store: shards of blocks, the table of documents, the skipped lines, and the manifest last.

Everything is written into a sibling folder `NAME.partial` that takes its name only when it is complete, so a folder of
that name is never half a store.
"""

import shutil
from collections import Counter
from pathlib import Path
from types import TracebackType

import jsonlines
import numpy as np
import pyarrow as pa

from pretraining.cli.errors import UserError
from pretraining.corpus.cards import write_card
from pretraining.corpus.documents import Document, SkippedLine
from pretraining.corpus.manifest import MANIFEST_NAME, Manifest, Origin, SplitContents, read_manifest
from pretraining.corpus.packing import BlockPacker, TokenBlock
from pretraining.corpus.shards import ShardWriter
from pretraining.corpus.splits import SPLITS, Split
from pretraining.corpus.tokenization import TOKENIZER_FILES

TOKENS_PER_ROW_GROUP = 1 << 22
ROW_GROUPS_PER_SHARD = 32  # 134 M tokens, about 200 MB
DOCUMENTS_PER_ROW_GROUP = 1 << 16
STORE_CONTENTS = {"data", "documents", "tokenizer", "skipped.jsonl", MANIFEST_NAME, "README.md"}
DOCUMENT_SCHEMA = pa.schema(
    {
        "document_id": pa.int64(),
        "split": pa.string(),
        "source": pa.string(),
        "file": pa.string(),
        "line": pa.int64(),
        "byte_offset": pa.int64(),
        "num_text_bytes": pa.int64(),
        "num_tokens": pa.int64(),
    }
)


class SplitWriter:
    """Packs and writes the documents of one split."""

    def __init__(self, folder: Path, split: Split, *, block_length: int, dtype: str) -> None:
        self._dtype = dtype
        self._block_length = block_length
        self._packer = BlockPacker(block_length=block_length)
        self._blocks: list[TokenBlock] = []
        self._blocks_per_row_group = max(1, TOKENS_PER_ROW_GROUP // block_length)
        self._schema = pa.schema(
            {
                "input_ids": pa.list_(pa.type_for_alias(dtype), block_length),
                "document_starts": pa.list_(pa.uint32()),
                "document_ids": pa.list_(pa.int64()),
                "first_document_offset": pa.int64(),
            }
        )
        self._shards = ShardWriter(
            folder / "data",
            split,
            self._schema,
            row_groups_per_shard=ROW_GROUPS_PER_SHARD,
            byte_stream_split=("input_ids.list.element",),
        )
        self.num_documents = self.num_tokens = self.num_blocks = 0

    def add(self, document_id: int, ids: np.ndarray) -> None:
        """Append one encoded document."""
        self.num_documents += 1
        self.num_tokens += len(ids)
        for block in self._packer.add(document_id, ids):
            self._blocks.append(block)
            self.num_blocks += 1
            if len(self._blocks) == self._blocks_per_row_group:
                self._write_row_group()

    def finish(self, folder: Path) -> SplitContents:
        """Write what is left and tell what the split holds."""
        if self._blocks:
            self._write_row_group()
        return SplitContents(
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            num_blocks=self.num_blocks,
            num_tail_tokens=self._packer.num_tail_tokens,
            shards=self._shards.finish(folder),
        )

    def _write_row_group(self) -> None:
        ids = np.concatenate([block.input_ids for block in self._blocks]).astype(self._dtype)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(ids), self._block_length),
            [block.document_starts for block in self._blocks],
            [block.document_ids for block in self._blocks],
            [block.first_document_offset for block in self._blocks],
        ]
        self._shards.write(pa.table(columns, schema=self._schema))
        self._blocks = []


class BlockStoreWriter:
    """Takes documents and skipped lines in input order, and makes the folder `output_dir` of them."""

    def __init__(self, output_dir: Path, origin: Origin, *, tokenizer_dir: Path) -> None:
        output_dir = output_dir.resolve()  # a link's target is what takes the finished folder's place
        self._output_dir = output_dir
        self._origin = origin
        self._partial = output_dir.with_name(output_dir.name + ".partial")
        _make_empty(self._partial)
        # Blocks are half the size on disk and in memory where the vocabulary fits into two bytes.
        self._dtype = "uint16" if origin.tokenizer.vocab_size <= np.iinfo(np.uint16).max + 1 else "uint32"
        self._splits = {
            split: SplitWriter(self._partial, split, block_length=origin.block_length, dtype=self._dtype)
            for split in SPLITS
        }
        self._documents = ShardWriter(
            self._partial / "documents",
            "documents",
            DOCUMENT_SCHEMA,
            row_groups_per_shard=ROW_GROUPS_PER_SHARD,
        )
        self._document_rows: list[tuple] = []
        self._skipped_counts: Counter[str] = Counter()
        self._skipped_file = jsonlines.open(self._partial / "skipped.jsonl", "w")
        self._copy_tokenizer(tokenizer_dir)
        self.num_documents = 0
        self.num_tokens = 0
        self.first_unreadable: SkippedLine | None = None

    def __enter__(self) -> "BlockStoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._skipped_file.close()
        if kind is not None and not (self._partial / MANIFEST_NAME).exists():
            shutil.rmtree(self._partial, ignore_errors=True)

    def add_document(self, document: Document, split: Split, ids: np.ndarray) -> None:
        """Append an encoded document to its split."""
        self._splits[split].add(self.num_documents, ids)
        row = (self.num_documents, split, document.source, document.file, document.line, document.byte_offset)
        self._document_rows.append((*row, len(document.text.encode("utf-8")), len(ids)))
        self.num_documents += 1
        self.num_tokens += len(ids)
        if len(self._document_rows) == DOCUMENTS_PER_ROW_GROUP:
            self._write_document_rows()

    def add_skipped(self, line: SkippedLine) -> None:
        """Write down a line that is no document."""
        if self.first_unreadable is None and line.reason != "blank_line":
            self.first_unreadable = line
        self._skipped_counts[line.reason] += 1
        self._skipped_file.write(
            {"file": line.file, "line": line.line, "reason": line.reason, "first_bytes": line.first_bytes}
        )

    @property
    def skipped_counts(self) -> dict[str, int]:
        """Number of skipped lines by reason, in a fixed order."""
        return dict(sorted(self._skipped_counts.items()))

    def finish(self) -> Manifest:
        """Close the shards, check the sums, write the manifest, and give the folder its name."""
        self._write_document_rows()
        self._skipped_file.close()
        manifest = Manifest(
            origin=self._origin,
            dtype=self._dtype,
            num_lines=self.num_documents + sum(self._skipped_counts.values()),
            num_documents=self.num_documents,
            skipped_lines=self.skipped_counts,
            splits={split: writer.finish(self._partial) for split, writer in self._splits.items()},
            documents=self._documents.finish(self._partial),
        )
        manifest.check_sums()
        write_card(manifest, self._partial)
        manifest.write(self._partial)
        self._partial.replace(self._output_dir)
        return manifest

    def _write_document_rows(self) -> None:
        if self._document_rows:
            columns = [list(column) for column in zip(*self._document_rows, strict=True)]
            self._documents.write(pa.table(columns, schema=DOCUMENT_SCHEMA))
            self._document_rows = []

    def _copy_tokenizer(self, tokenizer_dir: Path) -> None:
        target = self._partial / "tokenizer"
        target.mkdir()
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                (target / name).write_bytes((tokenizer_dir / name).read_bytes())


def finished_store(output_dir: Path, origin: Origin) -> Manifest | None:
    """The manifest of a block store of this very origin that is already there.

    Raises:
        UserError: when `output_dir` holds something else, which is left as it is.
    """
    if output_dir.is_mount():
        raise UserError(
            f"--output_dir {output_dir}: is a mount point, which cannot be renamed; choose a folder inside it"
        )
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return None
    if not (output_dir / MANIFEST_NAME).is_file():
        raise UserError(f"--output_dir {output_dir}: holds something else already; choose another folder")
    manifest = read_manifest(output_dir, flag="--output_dir")
    if manifest.origin != origin:
        raise UserError(
            f"--output_dir {output_dir}: holds a block store of other input or flags "
            f"({', '.join(_differences(manifest.origin, origin))}); choose another folder or delete this one"
        )
    return manifest


def _differences(theirs: Origin, ours: Origin) -> list[str]:
    return [f"{name} differs" for name in vars(ours) if vars(ours)[name] != vars(theirs)[name]]


def _make_empty(folder: Path) -> None:
    """Make `folder` new and empty; what an interrupted run left there is removed, anything else is not."""
    try:
        if folder.exists():
            if not {path.name for path in folder.iterdir()} <= STORE_CONTENTS:
                raise UserError(f"{folder}: is in the way of --output_dir; move it or choose another folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror}); choose another folder") from None
