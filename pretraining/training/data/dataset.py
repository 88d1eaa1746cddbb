"""The token blocks of a split as a memory-mapped torch data set: neither start-up nor workers copy them.

`datasets` opens the shards and converts Parquet to Arrow files once; rows are then views of that memory. No Python
object is kept per block or group of blocks, so the memory of a worker process does not grow as it reads. The Arrow
files are a copy: what happens to the shards after the start does not matter.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from pretraining.data.encode.splits import Split
from pretraining.data.store.integrity import check_hashes, shard_file
from pretraining.data.store.manifest import Manifest
from pretraining.data.store.shards import ANSWER_COLUMN, block_schema
from pretraining.errors import UserError
from pretraining.training.data.sources import DocumentSources

# Otherwise each split that is opened asks a server to count it, which takes 3 s where it does not answer.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
BLOCKS_READ_AT_START = 256  # of each split, evenly spaced: 30 ms
IGNORED_LABEL = -100  # ignored by torch's cross entropy

Item = dict[str, torch.Tensor]
RowIndex = tuple[int, int]  # the number of a chunk of the table, and the row in it


class UnusableBlockError(UserError):
    """A block that must not be trained on, reported in one line even when a worker of a DataLoader found it.

    torch raises it again with the traceback of the worker as its text, whose last line is ours.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip().rpartition(f"{type(self).__name__}: ")[2])


@dataclass(frozen=True)
class BlockFields:
    """What changes the items: positions that restart with each document, first tokens without a loss."""

    document_masking: bool = False
    ignore_first_token: bool = False


class BlockDataset(Dataset):
    """The blocks of one split of one store, as items of int64 tensors of shape [block_length].

    `labels` equal the inputs; `collate_targets` shifts them. EOS is a label like any other: a model whose EOS is masked
    as padding never learns to end. Masked are the padding of --packing best_fit, everything but the answers of a
    conversation, and, if asked for, the first token of each document. `sources` has the number of each token's source;
    if asked for, `position_ids` restart at 0 with each document.
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
        self._store = store
        self._shards = manifest.splits[split].shards
        self._has_answers = manifest.origin.chat_template is not None
        self._table = _open_table(store, manifest, split)
        chunks = self._table.column("num_padding_tokens").iterchunks()
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self.block_length = manifest.origin.block_length
        self._vocab_size = manifest.origin.tokenizer.vocab_size
        self._fields = fields
        self._sources = sources
        expected = manifest.splits[split].num_blocks
        if len(self) != expected:
            raise UserError(f"--dataset {store}: {split} has {len(self)} blocks, but {expected} in its manifest")
        for index in np.unique(np.linspace(0, expected - 1, BLOCKS_READ_AT_START, dtype=np.int64)).tolist():
            self[index]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Item:
        try:
            return self._item(index)
        except (IndexError, ValueError, pa.ArrowException) as error:
            ends = list(accumulate(shard.num_rows for shard in self._shards))
            number = bisect.bisect_right(ends, index)
            row = index - ends[number] + self._shards[number].num_rows
            raise UnusableBlockError(
                f"--dataset {self._store}: {self._shards[number].path} row {row:,} cannot be used ({error}); check the "
                f"data set: python3 -m tools.verify {self._store}"
            ) from None

    def _item(self, index: int) -> Item:
        row = self._row(index)
        stored_ids = self._values("input_ids", row)
        if stored_ids.max() >= self._vocab_size:  # 1.2 us; a block of 4,096 takes 40, and 90 with collating
            raise ValueError(f"token id {stored_ids.max():,}, the vocabulary has {self._vocab_size:,}")
        ids = stored_ids.astype(np.int64)
        num_tokens = self.block_length - int(self._values("num_padding_tokens", row)[0])
        starts = self._values("document_starts", row).astype(np.int64)
        labels = ids.copy()
        labels[num_tokens:] = IGNORED_LABEL
        if self._has_answers:
            labels[self._values(ANSWER_COLUMN, row) == 0] = IGNORED_LABEL
        if self._fields.ignore_first_token:
            labels[starts] = IGNORED_LABEL
        item = {"input_ids": ids, "labels": labels, "sources": self._sources_of(row, starts)}
        if self._fields.document_masking:
            bounds = np.append(starts, num_tokens) if num_tokens < self.block_length else starts
            item["position_ids"] = np.arange(self.block_length) - np.repeat(bounds, self._lengths(bounds))
        return {name: torch.from_numpy(values) for name, values in item.items()}

    def positions_of_token(self, index: int, number: int) -> np.ndarray:
        """The positions in block `index` of tokens that are number `number` of their document, int64."""
        row = self._row(index)
        starts = self._values("document_starts", row).astype(np.int64)
        positions = starts + number - self._values("document_offsets", row).astype(np.int64)
        ends = np.append(starts[1:], self.block_length)
        return positions[(positions >= starts) & (positions < ends)]

    def _sources_of(self, row: RowIndex, starts: np.ndarray) -> np.ndarray:
        if isinstance(self._sources, int):
            return np.full(self.block_length, self._sources, np.int64)
        sources = self._sources.of(self._values("document_ids", row).astype(np.int64))
        return np.repeat(sources, self._lengths(starts))

    def _lengths(self, starts: np.ndarray) -> np.ndarray:
        return np.diff(starts, append=self.block_length)

    def _row(self, index: int) -> RowIndex:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        return chunk, index - (int(self._ends[chunk - 1]) if chunk else 0)

    def _values(self, column: str, row: RowIndex) -> np.ndarray:
        """The values of one row, a view of the mapped file."""
        chunk, number = row
        values = self._table.column(column).chunk(chunk)
        if column == "num_padding_tokens":
            return values.slice(number, 1).to_numpy()
        found = values[number].values  # in 2 us; `flatten` takes 7
        if found is None:
            raise ValueError(f"{column} is null")
        return found.to_numpy()


class MixedBlocks(Dataset):
    """The blocks of several data sets, numbered consecutively; or `num_chosen` of them.

    Chosen are blocks (i + 1/2) n / num_chosen of all n, rounded down: as far apart as possible, so that each
    store of a mixture has its share to within one block, and the same for any number of processes.
    """

    def __init__(self, parts: Sequence[BlockDataset], *, num_chosen: int | None = None) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self._total = int(self._ends[-1])
        self._length = self._total if num_chosen is None else min(num_chosen, self._total)

    @property
    def is_partial(self) -> bool:
        """Whether some blocks are left out."""
        return self._length < self._total

    def choose(self, num_blocks: int | None) -> "MixedBlocks":
        """Return `num_blocks` of the blocks, evenly spread; None or more than there are: all."""
        return MixedBlocks(self._parts, num_chosen=num_blocks)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        part, number = self.locate(index)
        return self._parts[part][number]

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the data set that has block `index`, and the block's number in it."""
        if self.is_partial:
            index = (2 * int(index) + 1) * self._total // (2 * self._length)
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._ends[part]) + len(self._parts[part])

    def part(self, number: int) -> BlockDataset:
        """Return one of the data sets."""
        return self._parts[number]


def _open_table(store: Path, manifest: Manifest, split: Split) -> pa.Table:
    """Open the shards of a split as one table, mapped from the Arrow files in the cache of `datasets`.

    Raises:
        UserError: when a shard is missing, is damaged so that it cannot be read, or has other columns.
    """
    origin = manifest.origin
    schema = block_schema(origin.block_length, origin.dtype, has_answers=origin.chat_template is not None)
    paths = [str(shard_file(store, shard, flag="--dataset")) for shard in manifest.splits[split].shards]
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset("parquet", data_files=paths, split="train", columns=schema.names).data
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:  # e.g. the disk of the cache is full
            raise cause from None
        check_hashes(store, manifest, flag="--dataset")  # names the shard
        reason = str(cause).splitlines()[0]
        raise UserError(f"--dataset {store}: its {split} shards cannot be read ({reason}); preprocess again") from None
    if table.schema.remove_metadata() != schema:
        raise UserError(
            f"--dataset {store}: its {split} shards have other columns than a block store; preprocess again"
        )
    return table
