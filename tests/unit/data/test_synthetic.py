"""Random ids make a store like any other: the same bytes each time, every id as likely, made once."""

import filecmp
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pretraining.data.mixture import Mixture
from pretraining.data.synthetic import synthetic_mixture
from tests.conftest import PROJECT_DIR

MAKE = "from pretraining.data.synthetic import *; print(synthetic_mixture(block_length=64, vocab_size=512).names)"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Random ids in a cache folder of their own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return synthetic_mixture(block_length=64, vocab_size=512)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pretraining"


def test_every_id_is_as_likely_as_any_other(made: Mixture) -> None:
    (num_blocks,) = made.num_blocks("train")
    store = made.first
    assert num_blocks == store.manifest.num_documents * 1001 // 64  # 1,000 ids and EOS, none lost or split in two
    assert made.num_blocks("validation") == made.num_blocks("test") == [0]
    ids = np.concatenate(
        [
            pq.read_table(store.folder / shard.path, columns=["input_ids"])["input_ids"].combine_chunks().flatten()
            for shard in store.manifest.splits["train"].shards
        ]
    )
    counts = np.bincount(ids, minlength=512)
    assert counts[:2].sum() == 0
    assert counts[3:].min() > 0.9 * counts[3:].mean()


def test_processes_that_start_together_find_one_store(cache: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", MAKE], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["synthetic"] * 2
    assert [path.name for path in cache.glob("*.partial")] == []


def test_it_is_the_same_bytes_each_time(made: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made.first.folder
    kept = first.rename(first.with_name("kept"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(first.parents[1]))
    again = synthetic_mixture(block_length=64, vocab_size=512).first.folder
    assert again == first
    names = [str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()]
    assert len(names) > 4
    assert filecmp.cmpfiles(kept, again, names, shallow=False)[0] == names
