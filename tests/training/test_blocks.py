"""What the model is given: each block once, nothing masked, EOS learned; and an evaluation that counts exactly."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, default_data_collator

from pretraining.cli.errors import UserError
from pretraining.corpus.manifest import read_manifest
from pretraining.training.block_dataset import BlockDataset, Item, MixedBlocks
from pretraining.training.evaluation import EvaluationBlocks, evaluate_blocks, losses_by
from pretraining.training.loss import collate_targets
from tests.conftest import python, run_fine

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


def test_labels_are_the_inputs_and_eos_is_not_masked(blocks: BlockDataset) -> None:
    batch = next(iter(DataLoader(blocks, batch_size=len(blocks), collate_fn=default_data_collator)))
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert (batch["labels"] == EOS).sum() >= 5


def test_the_loss_at_eos_counts(blocks: BlockDataset, model: LlamaForCausalLM) -> None:
    batch = inputs([blocks[index] for index in range(len(blocks))])
    with torch.no_grad():
        output = model(**batch)
    targets = batch["labels"][:, 1:].reshape(-1)
    losses = torch.nn.functional.cross_entropy(output.logits[:, :-1].reshape(-1, 8192), targets, reduction="none")
    assert (targets == EOS).sum() >= 5
    torch.testing.assert_close(output.loss, losses.mean())
    masked = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == EOS, -100)}
    with torch.no_grad():
        assert model(**masked).loss != output.loss, "masking EOS must be seen by this test"


@pytest.mark.parametrize("multiple", [1, 3, 7])
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
    assert figures["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))


def test_a_missing_or_cut_shard_is_named(sample_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet is missing"):
        BlockDataset(tmp_path, manifest, "train")
    (path,) = sample_store.glob("data/train-*.parquet")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / path.name).write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="bytes, its manifest says"):
        BlockDataset(tmp_path, manifest, "train")


def test_padding_of_best_fit_is_never_in_the_loss(model: LlamaForCausalLM, tmp_path: Path) -> None:
    store = tmp_path / "blocks"
    run_fine(*python("preprocess.py", "--packing", "best_fit", "--block_length", 1000, "--output_dir", store))
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
