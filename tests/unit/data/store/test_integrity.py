import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.store.integrity import store_problems
from pretraining.data.store.manifest import read_manifest
from pretraining.data.store.shards import block_schema
from pretraining.system.files import sha256_of


@pytest.fixture
def store(sample_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sample_store, tmp_path / "blocks")


def problems(store: Path) -> list[str]:
    return store_problems(store, read_manifest(store, flag=""))


def train_shard(store: Path) -> Path:
    (path,) = store.glob("data/train-*.parquet")
    return path


def replace_train(store: Path, table: pa.Table, **how: object) -> None:
    """Write the shard by pyarrow, with its size and hash in the manifest."""
    path = train_shard(store)
    pq.write_table(table, path, **how)
    content = json.loads((store / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0] |= {"num_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (store / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("with_nulls", [False, True])
def test_stores_that_pyarrow_wrote_are_sound(store: Path, with_nulls: bool) -> None:
    assert problems(store) == []
    table = pq.read_table(train_shard(store))
    schema = block_schema(64, "uint16") if with_nulls else table.schema
    earlier = {"compression": "zstd", "use_dictionary": False}
    earlier["column_encoding"] = {"input_ids.list.element": "BYTE_STREAM_SPLIT"}
    replace_train(store, pa.table(table.to_pydict(), schema=schema), **earlier, row_group_size=100)
    assert problems(store) == []


def test_other_columns_are_a_problem(store: Path) -> None:
    replace_train(store, pq.read_table(train_shard(store)).drop_columns("document_ids"))
    (problem,) = problems(store)
    assert problem.endswith("does not have the columns of a block store")


def test_every_changed_or_missing_byte_is_found(store: Path) -> None:
    path = train_shard(store)
    content = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(content), 30).tolist()
    for place in [0, *places, len(content) - 1]:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert [problem.partition(" is damaged: ")[0] for problem in problems(store)] == [str(path)], place
        path.write_bytes(content[:place])
        assert len(problems(store)) == 1, place
