"""The token blocks of one split as a torch data set.

The shards are opened by `datasets`, which turns Parquet into memory-mapped Arrow once; rows are then views of that
memory, so neither start-up nor workers copy the data.
"""

from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from pretraining.cli.errors import UserError
from pretraining.corpus.manifest import Manifest
from pretraining.corpus.shards import Shard
from pretraining.corpus.splits import Split

COLUMNS = ["input_ids", "num_padding_tokens"]
IGNORED_LABEL = -100  # torch's cross entropy leaves these positions out


class BlockDataset(Dataset):
    """Items are `input_ids` and `labels`, both int64 of shape [block_length].

    The labels are the inputs themselves, the model shifts them. EOS is a label like any other: a model whose EOS is
    masked as padding never learns to end. Only the padding of --packing best_fit, which belongs to no document, is
    masked.
    """

    def __init__(self, store: Path, manifest: Manifest, split: Split) -> None:
        shards = manifest.splits[split].shards
        for shard in shards:
            _check_shard(store, shard)
        paths = [str(store / shard.path) for shard in shards]
        datasets.disable_progress_bars()
        table = datasets.load_dataset("parquet", data_files=paths, split="train", columns=COLUMNS).data
        chunks = table.column("input_ids").chunks
        self._views = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks if len(chunk)]
        self._num_padding_tokens = table.column("num_padding_tokens").to_numpy()
        self._ends = np.cumsum([len(view) for view in self._views])
        expected = manifest.splits[split].num_blocks
        if len(self) != expected:
            raise UserError(f"--dataset {store}: {split} has {len(self)} blocks, its manifest says {expected}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[chunk - 1]) if chunk else 0
        ids = torch.from_numpy(self._views[chunk][index - start].astype(np.int64))
        num_padding_tokens = int(self._num_padding_tokens[index])
        if not num_padding_tokens:
            return {"input_ids": ids, "labels": ids}
        labels = ids.clone()
        labels[len(ids) - num_padding_tokens :] = IGNORED_LABEL
        return {"input_ids": ids, "labels": labels}


def _check_shard(store: Path, shard: Shard) -> None:
    path = store / shard.path
    found = path.stat().st_size if path.is_file() else None
    if found != shard.num_bytes:
        state = "is missing" if found is None else f"has {found:,} bytes, its manifest says {shard.num_bytes:,}"
        raise UserError(f"--dataset {store}: {path} {state}; copy the whole folder again, or preprocess again")


def open_split(store: Path, manifest: Manifest, split: Split) -> BlockDataset | None:
    """The blocks of a split, None when it has none."""
    return BlockDataset(store, manifest, split) if manifest.splits[split].num_blocks else None
