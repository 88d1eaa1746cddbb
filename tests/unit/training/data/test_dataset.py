"""What the model is given: each block once, nothing masked, EOS learned; and an evaluation that counts exactly."""

import gc
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, _utils
from transformers import LlamaConfig, LlamaForCausalLM, default_data_collator

from pretraining.data.store.manifest import read_manifest
from pretraining.errors import UserError
from pretraining.system.files import sha256_of
from pretraining.training.config.early_checks import check_tokenizer
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import BlockDataset, Item, MixedBlocks
from pretraining.training.metrics.evaluation import EvaluationBlocks, evaluate_blocks, losses_by
from tests.conftest import python
from tests.programs.launching import run_forked_fine
from tests.rounding import MEAN_ROUNDING, assert_same_sums, sum_rounding

EOS = 2


@pytest.fixture(scope="module")
def blocks(sample_store: Path) -> BlockDataset:
    return BlockDataset(sample_store, read_manifest(sample_store, flag=""), "validation")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8192, **shape)).eval()


def inputs(items: list[Item]) -> Item:
    """What plain transformers takes."""
    return {name: torch.stack([item[name] for item in items]) for name in ("input_ids", "labels")}


def test_items_are_the_blocks_of_the_shards_in_order(blocks: BlockDataset, sample_store: Path) -> None:
    (path,) = sample_store.glob("data/validation-*.parquet")
    expected = np.array(pq.read_table(path)["input_ids"].to_pylist())
    assert np.array_equal(np.stack([blocks[index]["input_ids"].numpy() for index in range(len(blocks))]), expected)
    assert blocks[0]["input_ids"].dtype == torch.int64


@pytest.mark.guarantee("EOS is learned: it is not masked as padding.")
def test_labels_are_the_inputs_and_eos_is_not_masked(blocks: BlockDataset) -> None:
    batch = next(iter(DataLoader(blocks, batch_size=len(blocks), collate_fn=default_data_collator)))
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert (batch["labels"] == EOS).sum() >= 5


def test_the_loss_at_eos_counts(blocks: BlockDataset, model: LlamaForCausalLM) -> None:
    """Block by block: a mean of 63 losses is that exact that one of them is seen."""
    ending = [block for block in map(blocks.__getitem__, range(len(blocks))) if (block["labels"][1:] == EOS).any()]
    assert len(ending) >= 5
    for block in ending:
        batch = inputs([block])
        masked = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == EOS, -100)}
        with torch.no_grad():
            output, without_eos = model(**batch), model(**masked).loss
        targets = batch["labels"][0, 1:]
        losses = torch.nn.functional.cross_entropy(output.logits[0, :-1], targets, reduction="none")
        assert_same_sums(output.loss, losses.mean(), len(losses))
        assert (without_eos / output.loss - 1).abs() > sum_rounding(len(losses)), "masking EOS must be seen here"


@pytest.mark.parametrize("multiple", [1, 3, 7])
@pytest.mark.guarantee("Evaluation counts each block exactly once for any number of processes.")
def test_evaluation_counts_each_block_once_whatever_the_batches(
    blocks: BlockDataset, model: LlamaForCausalLM, multiple: int
) -> None:
    filled = EvaluationBlocks(MixedBlocks([blocks]), text_bytes=None, multiple=multiple)
    assert len(filled) % multiple == 0
    batches = DataLoader(filled, batch_size=multiple, collate_fn=collate_targets)
    figures = evaluate_blocks(losses_by(model), batches, sources=["all"], device=torch.device("cpu"))
    with torch.no_grad():
        losses = [model(**inputs([blocks[index]])).loss.item() for index in range(len(blocks))]
    assert figures["num_tokens"] == len(blocks) * 63
    assert figures["loss"] == pytest.approx(float(np.mean(losses)), rel=MEAN_ROUNDING)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))


@pytest.mark.parametrize("sizes", [(7,), (100, 3, 41), (1, 1, 400)])
@pytest.mark.guarantee("--eval_blocks reads evenly spread blocks, of each store its share, whatever the processes.")
def test_chosen_blocks_are_evenly_spread_over_all_sources(sizes: tuple[int, ...]) -> None:
    total = sum(sizes)
    whole = MixedBlocks([_Numbers(size) for size in sizes])
    everything = [whole.locate(index) for index in range(total)]
    for count in range(1, total + 5):
        chosen = whole.choose(count)
        assert (len(chosen), chosen.is_partial) == (min(count, total), count < total)
        places = [chosen.locate(index) for index in range(len(chosen))]
        numbers = [everything.index(place) for place in places[:: max(1, count // 50)]] if count < 60 else []
        assert numbers == [int((index + 0.5) * total / len(chosen)) for index in range(len(chosen))][: len(numbers)]
        assert places == sorted(set(places)), "no block twice"
        for part, size in enumerate(sizes):
            found = sum(place[0] == part for place in places)
            assert abs(found - size * len(chosen) / total) < 1, "its share to within one block"
    assert [whole.choose(None).locate(index) for index in range(total)] == everything


class _Numbers(BlockDataset):
    """Blocks of which only the number is known."""

    def __init__(self, size: int) -> None:
        self._ends = np.array([size])


def test_an_evaluation_of_a_part_says_so(blocks: BlockDataset, model: LlamaForCausalLM) -> None:
    """Its loss is that of the chosen blocks alone, in batches of any size."""
    chosen = MixedBlocks([blocks]).choose(4)
    numbers = [int((index + 0.5) * len(blocks) / 4) for index in range(4)]
    with torch.no_grad():
        losses = [model(**inputs([blocks[number]])).loss.item() for number in numbers]
    for size in (1, 3):
        filled = EvaluationBlocks(chosen, text_bytes=None, multiple=size)
        assert filled.mark == {"blocks": 4}
        batches = DataLoader(filled, batch_size=size, collate_fn=collate_targets)
        figures = evaluate_blocks(losses_by(model), batches, sources=["all"], device=torch.device("cpu"))
        assert figures["num_tokens"] == 4 * 63
        assert figures["loss"] == pytest.approx(float(np.mean(losses)), rel=MEAN_ROUNDING)
    assert EvaluationBlocks(MixedBlocks([blocks]), text_bytes=None, multiple=1).mark == {}


def test_a_missing_or_cut_shard_is_named(sample_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet is missing"):
        BlockDataset(tmp_path, manifest, "train")
    (path,) = sample_store.glob("data/train-*.parquet")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / path.name).write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="bytes, the manifest has"):
        BlockDataset(tmp_path, manifest, "train")


def forge(source: Path, store: Path, rows: list[int], token_id: int, *, hashed: bool = False) -> Path:
    """A copy of a block store with an id in these rows of train, and a manifest that has the sizes right."""
    (path,) = source.glob("data/train-*.parquet")
    table = pq.read_table(path)
    ids = np.array(table["input_ids"].combine_chunks().flatten()).reshape(table.num_rows, -1).copy()
    ids[rows, 5] = token_id
    column = pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), ids.shape[1])
    return forge_column(source, store, "input_ids", column, hashed=hashed)


def forge_column(source: Path, store: Path, name: str, column: pa.Array, *, hashed: bool = False) -> Path:
    """A copy of a block store with another column of train, and a manifest that has the sizes right."""
    shutil.copytree(source, store)
    (path,) = store.glob("data/train-*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.names.index(name), name, column), path)
    content = json.loads((store / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["num_bytes"] = path.stat().st_size
    if hashed:
        content["splits"]["train"]["shards"][0]["sha256"] = sha256_of(path)
    (store / "manifest.json").write_text(json.dumps(content))
    return store


def test_ids_that_the_vocabulary_has_not_are_found_at_the_start(sample_store: Path, tmp_path: Path) -> None:
    num_rows = read_manifest(sample_store, flag="").splits["train"].num_blocks
    store = forge(sample_store, tmp_path / "forged", list(range(300, num_rows)), 8192)
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet row 3\d\d cannot be used \(token id 8,192"):
        BlockDataset(store, read_manifest(store, flag=""), "train")
    forged = forge(sample_store, tmp_path / "largest", [0], 8191)
    BlockDataset(forged, read_manifest(forged, flag=""), "train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_id_that_the_vocabulary_has_not_is_found_when_it_is_read(
    sample_store: Path, tmp_path: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After an error torch waits so long for each worker, 5 s otherwise, when the loader's iterator is collected.
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    store = forge(sample_store, tmp_path / "forged", [1], 9000)
    blocks = MixedBlocks([BlockDataset(store, read_manifest(store, flag=""), "train")])
    loader = DataLoader(blocks, batch_size=4, num_workers=num_workers, collate_fn=collate_targets)
    with pytest.raises(UserError) as found:
        list(loader)
    message = str(found.value)
    del found
    gc.collect()
    assert message == (
        f"--dataset {store}: data/train-00000-of-00001.parquet row 1 cannot be used (token id 9,000, the vocabulary "
        f"has 8,192); check the data set: python3 -m tools.verify {store}"
    )


@pytest.mark.parametrize("column", ["input_ids", "document_starts", "num_padding_tokens"])
def test_a_null_is_found_at_the_start(sample_store: Path, tmp_path: Path, column: str) -> None:
    (path,) = sample_store.glob("data/train-*.parquet")
    found = pq.read_table(path)[column]
    nulled = pa.array([None, *found.to_pylist()[1:]], found.type)
    store = forge_column(sample_store, tmp_path / "forged", column, nulled)
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet row 0 cannot be used"):
        BlockDataset(store, read_manifest(store, flag=""), "train")


def test_opening_a_store_asks_no_server(sample_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append("a session"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    BlockDataset(sample_store, read_manifest(sample_store, flag=""), "validation")
    assert not asked


def test_damage_that_cannot_be_decoded_names_the_shard(sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    (path,) = store.glob("data/train-*.parquet")
    content = path.read_bytes()
    path.write_bytes(b"PAR1" + bytes(len(content) - 8) + b"PAR1")
    with pytest.raises(UserError, match=f"{path} has the SHA-256 {sha256_of(path)}, the manifest has"):
        BlockDataset(store, read_manifest(store, flag=""), "train")


def test_shards_of_other_columns_or_lengths_are_refused(sample_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    other = replace(manifest, origin=replace(manifest.origin, block_length=32))
    with pytest.raises(UserError, match="train shards have other columns than a block store"):
        BlockDataset(sample_store, other, "train")


@pytest.mark.parametrize("change", ["replaced", "cut", "overwritten", "removed"])
def test_a_store_that_changes_while_it_is_read_changes_nothing(sample_store: Path, tmp_path: Path, change: str) -> None:
    """What is read is the copy in Arrow files that was made of it at the start."""
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    blocks = BlockDataset(store, read_manifest(store, flag=""), "train")
    expected = BlockDataset(sample_store, read_manifest(sample_store, flag=""), "train")
    (path,) = store.glob("data/train-*.parquet")
    if change == "replaced":
        (store / "other").write_bytes(b"x" * path.stat().st_size)
        (store / "other").replace(path)
    elif change == "cut":
        os.truncate(path, 100)
    elif change == "overwritten":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        shutil.rmtree(store)
    assert all(torch.equal(blocks[index]["input_ids"], expected[index]["input_ids"]) for index in range(len(blocks)))


def test_files_of_a_store_are_in_it_or_in_the_cache_of_the_hub(sample_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    (path,) = sample_store.glob("data/train-*.parquet")
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    inside = store / "data" / path.name
    inside.unlink()
    inside.symlink_to(path)
    with pytest.raises(UserError, match=f"{inside} is a link out of the data set, to {path}"):
        BlockDataset(store, manifest, "train")
    inside.unlink()
    inside.symlink_to(inside)
    with pytest.raises(UserError, match="is missing"):
        BlockDataset(store, manifest, "train")
    snapshot, blobs = tmp_path / "cache/snapshots/0123", tmp_path / "cache/blobs"
    shutil.copytree(sample_store, snapshot)
    blobs.mkdir()
    for file in [*snapshot.glob("data/*"), *snapshot.glob("tokenizer/*")]:
        file.rename(blobs / file.name)
        file.symlink_to(Path("../../../blobs") / file.name)
    check_tokenizer(snapshot, manifest)
    assert len(BlockDataset(snapshot, manifest, "train")) == manifest.splits["train"].num_blocks
    (tmp_path / "linked").symlink_to(sample_store)
    assert len(BlockDataset(tmp_path / "linked", manifest, "train")) == manifest.splits["train"].num_blocks


@pytest.mark.guarantee("Padding is never in the loss.")
def test_padding_of_best_fit_is_never_in_the_loss(model: LlamaForCausalLM, tmp_path: Path) -> None:
    store = tmp_path / "blocks"
    run_forked_fine(*python("preprocess.py", "--packing", "best_fit", "--block_length", 1000, "--output_dir", store))
    manifest = read_manifest(store, flag="")
    blocks = BlockDataset(store, manifest, "train")
    num_labels = 0
    for index in range(len(blocks)):
        ids, labels = blocks[index]["input_ids"], blocks[index]["labels"]
        is_label = labels != -100
        num_labels += int(is_label.sum())
        assert bool((labels[is_label] == ids[is_label]).all())
        assert bool((is_label.long().diff() <= 0).all()), "padding stands at the end"
        assert labels[is_label][-1] == 2, "EOS of the last document is learned"
    train = manifest.splits["train"]
    assert num_labels == train.num_tokens
    assert train.num_padding_tokens > 0
    padded = next(index for index in range(len(blocks)) if (blocks[index]["labels"] == -100).any())
    batch = inputs([blocks[padded]])
    other = {**batch, "input_ids": torch.where(batch["labels"] == -100, 7, batch["input_ids"])}
    with torch.no_grad():
        assert model(**batch).loss == model(**other).loss, "what stands in the padding changes nothing"
