"""Damaged and forged manifests: one line, or the very blocks that preprocess.py made; never a traceback."""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.hub.upload import stored_files
from pretraining.data.mixture import load_mixture
from pretraining.data.store.manifest import MANIFEST_NAME, read_manifest
from pretraining.errors import UserError
from pretraining.training.config.early_checks import check_tokenizer
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.loader import BlockStream
from pretraining.training.data.order import make_order
from pretraining.training.data.phases import RunOrder
from pretraining.training.data.splits import open_training_data
from tests.adversarial.drivers.mutations import mutations, num_mutations

NUM_MUTATIONS = 1_500


def opened_blocks(store: Path) -> list[np.ndarray]:
    """The first and last block of each split as training opens them, and what an upload would send."""
    mixture = load_mixture([str(store)], revision=None)
    check_tokenizer(store, mixture.first.manifest)
    data = open_training_data(mixture, BlockStream(RunOrder.of(make_order(mixture, seed=0))), BlockFields())
    stored_files(store, flag="--output_dir")
    splits = [blocks for blocks in (data.train, data.validation, data.test) if blocks is not None]
    return [blocks[index]["input_ids"].numpy() for blocks in splits for index in (0, len(blocks) - 1)]


def problem_of(store: Path, content: bytes, expected: list[np.ndarray]) -> str | None:
    """The one line that a manifest leads to; None when the blocks are opened, which must be the expected ones."""
    (store / MANIFEST_NAME).write_bytes(content)
    try:
        found = opened_blocks(store)
    except UserError as error:
        (line,) = error.problems
        assert "\n" not in line.strip(), line
        assert len(line) < 1000, line
        assert line.isprintable(), line
        assert str(store) in line, line
        return line
    assert len(found) == len(expected), content
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True)), content
    return None


@pytest.fixture
def store(sample_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(sample_store, tmp_path / "blocks")
    return tmp_path / "blocks"


def test_a_mutated_manifest_is_one_line_or_the_same_blocks(store: Path) -> None:
    content = (store / MANIFEST_NAME).read_bytes()
    expected = opened_blocks(store)
    total = num_mutations(NUM_MUTATIONS)
    problems = [problem_of(store, mutated, expected) for mutated in islice(mutations(content, seed=7), total)]
    refused = [problem for problem in problems if problem is not None]
    assert len(refused) > total / 2, "most mutations change what is checked"
    assert len(set(refused)) > total / 8, "and are told apart"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('"data/train-00000-of-00001.parquet"', '"/etc/passwd"', "'/etc/passwd' is not data/train-00000"),
        ('"data/train-00000-of-00001.parquet"', '"data/../../x.parquet"', "'data/../../x.parquet' is not data/train-"),
        ('"data/train-00000-of-00001.parquet"', '"*"', "'*' is not data/train-00000"),
        ('"data/train-00000-of-00001.parquet"', '"data/test-00000-of-00001.parquet"', "is not data/train-00000"),
        ('"data/train-00000-of-00001.parquet"', '"data\\\\train-00000-of-00001.parquet"', "is not data/train-00000"),
        ('"data/train-00000-of-00001.parquet"', '"data/train-00000-of-00001.parquet\\u001b[2J"', "x1b"),
        ('"block_length": 64', '"block_length": true', "origin.block_length is True, which is not of type int"),
        ('"block_length": 64', '"block_length": 32', "tokens of train do not add up"),
        ('"seed": 42', '"seed": -1', "origin.seed is out of range (-1)"),
        ('"seed": 42', '"sead": 42', "origin lacks 'seed'"),
        ('"seed": 42', '"seed": 42, "code": "x"', "origin has an unknown field 'code'"),
        pytest.param('"seed": 42', '"seed": ' + "[" * 100_000, "nested too deep", id="deep"),
        ('"format_version": 2', '"format_version": "\\u001b[2J"', "has format version '\\x1b[2J', this program reads"),
        ('"vocab_size": 8192', '"vocab_size": 7', "vocab_size 7 is not more than its largest id"),
        ('"dtype": "uint16"', '"dtype": "uint8"', "dtype is not uint16"),
    ],
)
def test_what_a_manifest_must_not_say_is_named(store: Path, old: str, new: str, part: str) -> None:
    text = (store / MANIFEST_NAME).read_text(encoding="utf-8")
    assert old in text
    (store / MANIFEST_NAME).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_manifest(store, flag="--dataset")
    assert part in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("number", range(3), ids=["num_bytes", "num_rows", "sha256"])
def test_a_shard_whose_record_is_of_another_type_is_refused(store: Path, number: int) -> None:
    manifest = read_manifest(store, flag="--dataset")
    shard = manifest.splits["train"].shards[0]
    old = [f'"num_bytes": {shard.num_bytes}', f'"num_rows": {shard.num_rows}', f'"sha256": "{shard.sha256}"'][number]
    new = [f'"num_bytes": "{shard.num_bytes}"', f'"num_rows": -{shard.num_rows}', '"sha256": "x"'][number]
    text = (store / MANIFEST_NAME).read_text(encoding="utf-8")
    (store / MANIFEST_NAME).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(store, flag="--dataset")
