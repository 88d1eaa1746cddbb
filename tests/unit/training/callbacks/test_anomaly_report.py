"""The blocks of a step with a fault, as they are told."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.mixture import load_mixture
from pretraining.training.callbacks.anomaly_report import describe_blocks
from pretraining.training.data.dataset import BlockDataset, MixedBlocks


@pytest.mark.parametrize("damage", ["gone", "damaged", "no manifest"])
def test_a_store_that_was_taken_away_does_not_end_the_run(damage: str, sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    mixture = load_mixture([str(store)], revision=None)
    blocks = MixedBlocks([BlockDataset(store, mixture.first.manifest, "train")])
    (whole,) = describe_blocks([(3, 2.5)], blocks, mixture)
    assert whole["documents"]
    for shard in mixture.first.manifest.documents:
        (store / shard.path).unlink() if damage == "gone" else (store / shard.path).write_bytes(b"PAR1")
    if damage == "no manifest":
        (store / "manifest.json").unlink()
    (record,) = describe_blocks([(3, np.nan)], blocks, mixture)
    assert record == {"dataset": str(store), "block": 3, "block_loss": "nan", "documents": []}
