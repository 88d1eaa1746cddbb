"""The token blocks of a split as a torch data set: memory-mapped, so that neither start-up nor workers copy them.

The shards are opened by `datasets`, which turns Parquet into Arrow files once; rows are then views of that memory. No
Python object is kept for a block or a group of them, so the memory of a worker process does not grow as it reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from pretraining.cli.errors import UserError
from pretraining.corpus.manifest import Manifest
from pretraining.corpus.shards import Shard
from pretraining.corpus.splits import Split
from pretraining.corpus.tables import ANSWER_COLUMN
from pretraining.training.block_sources import DocumentSources

COLUMNS = ["input_ids", "document_starts", "document_ids", "document_offsets", "num_padding_tokens"]
IGNORED_LABEL = -100  # torch's cross entropy leaves these positions out

Item = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BlockFields:
    """What an item has besides `input_ids` and `labels`."""

    isolate_documents: bool = False
    mask_document_starts: bool = False


class BlockDataset(Dataset):
    """The blocks of one split of one store, as items of int64 tensors of shape [block_length].

    `labels` are the inputs themselves, the loss shifts them. EOS is a label like any other: a model whose EOS is
    masked as padding never learns to end. Masked are the padding of --packing best_fit, which belongs to no document,
    all of a conversation that is no answer, and, if asked for, the first token of each document. `sources` has the
    number of each token's source; if asked for, `position_ids` begin at 0 with each document.
    """

    def __init__(
        self,
        store: Path,
        manifest: Manifest,
        split: Split,
        *,
        fields: BlockFields = BlockFields(),
        sources: DocumentSources | int = 0,
    ) -> None:
        shards = manifest.splits[split].shards
        for shard in shards:
            _check_shard(store, shard)
        paths = [str(store / shard.path) for shard in shards]
        self._has_answers = manifest.origin.chat_template is not None
        columns = [*COLUMNS, ANSWER_COLUMN] if self._has_answers else COLUMNS
        datasets.disable_progress_bars()
        self._table: pa.Table = datasets.load_dataset("parquet", data_files=paths, split="train", columns=columns).data
        self._ends = np.array(list(accumulate(_chunk_lengths(self._table))), np.int64)
        self.block_length = manifest.origin.block_length
        self._fields = fields
        self._sources = sources
        expected = manifest.splits[split].num_blocks
        if len(self) != expected:
            raise UserError(f"--dataset {store}: {split} has {len(self)} blocks, its manifest says {expected}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Item:
        ids = self._values("input_ids", index).astype(np.int64)
        num_tokens = self.block_length - int(self._values("num_padding_tokens", index)[0])
        starts = self._values("document_starts", index).astype(np.int64)
        labels = ids.copy()
        labels[num_tokens:] = IGNORED_LABEL
        if self._has_answers:
            labels[self._values(ANSWER_COLUMN, index) == 0] = IGNORED_LABEL
        if self._fields.mask_document_starts:
            labels[starts] = IGNORED_LABEL
        item = {"input_ids": ids, "labels": labels, "sources": self._sources_of(index, starts)}
        if self._fields.isolate_documents:
            bounds = np.append(starts, num_tokens) if num_tokens < self.block_length else starts
            item["position_ids"] = np.arange(self.block_length) - np.repeat(bounds, self._lengths(bounds))
        return {name: torch.from_numpy(values) for name, values in item.items()}

    def first_text_tokens(self, index: int, *, place: int) -> np.ndarray:
        """Where in a block tokens stand that are number `place` of their document."""
        starts = self._values("document_starts", index).astype(np.int64)
        places = starts + place - self._values("document_offsets", index).astype(np.int64)
        ends = np.append(starts[1:], self.block_length)
        return places[(places >= starts) & (places < ends)]

    def _sources_of(self, index: int, starts: np.ndarray) -> np.ndarray:
        if isinstance(self._sources, int):
            return np.full(self.block_length, self._sources, np.int64)
        sources = self._sources.of(self._values("document_ids", index).astype(np.int64))
        return np.repeat(sources, self._lengths(starts))

    def _lengths(self, starts: np.ndarray) -> np.ndarray:
        return np.diff(starts, append=self.block_length)

    def _values(self, column: str, index: int) -> np.ndarray:
        """The values of one row, a view of the mapped file."""
        chunk_number = int(np.searchsorted(self._ends, index, side="right"))
        chunk = self._table.column(column).chunk(chunk_number)
        row = index - (int(self._ends[chunk_number]) - len(chunk))
        if pa.types.is_fixed_size_list(chunk.type) or pa.types.is_list(chunk.type):
            return chunk.slice(row, 1).flatten().to_numpy()
        return chunk.slice(row, 1).to_numpy()


class MixedBlocks(Dataset):
    """The blocks of several data sets, numbered through."""

    def __init__(self, parts: Sequence[BlockDataset]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Item:
        part, place = self.locate(index)
        return self._parts[part][place]

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the data set that has block `index`, and the block's number in it."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._ends[part]) + len(self._parts[part])

    def part(self, number: int) -> BlockDataset:
        """One of the data sets."""
        return self._parts[number]


def _chunk_lengths(table: pa.Table) -> list[int]:
    column = table.column("num_padding_tokens")
    return [len(chunk) for chunk in column.iterchunks()]


def _check_shard(store: Path, shard: Shard) -> None:
    path = store / shard.path
    found = path.stat().st_size if path.is_file() else None
    if found != shard.num_bytes:
        state = "is missing" if found is None else f"has {found:,} bytes, its manifest says {shard.num_bytes:,}"
        raise UserError(f"--dataset {store}: {path} {state}; copy the whole folder again, or preprocess again")
