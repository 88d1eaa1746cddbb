"""Losses by token, their sums by source, and what counts as a spike."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.store.manifest import read_manifest
from pretraining.data.store.shards import Shard
from pretraining.errors import UserError
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import IGNORED_LABEL, BlockDataset, MixedBlocks
from pretraining.training.data.sources import read_document_sources
from pretraining.training.data.text_bytes import open_text_bytes
from pretraining.training.metrics.evaluation import EvaluationBlocks, evaluate_blocks, losses_by
from pretraining.training.metrics.spike_detector import SpikeDetector
from pretraining.training.model.loss import block_sums, source_sums, token_losses
from tests.conftest import python
from tests.programs.launching import run_forked_fine
from tests.rounding import sum_rounding


@pytest.fixture
def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, 50, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (3, 20), generator=generator)
    labels[1, 12:] = IGNORED_LABEL
    return logits, labels


def test_token_losses_are_those_of_torch(logits_and_labels: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = logits_and_labels
    tokens = token_losses(SimpleNamespace(logits=logits), shifted(labels))
    for row in range(3):
        for place in range(19):
            target = int(labels[row, place + 1])
            expected = (
                0.0 if target == IGNORED_LABEL else cross_entropy(logits[row, place], torch.tensor(target)).item()
            )
            assert tokens.losses[row, place].item() == pytest.approx(expected, rel=sum_rounding(50))
            is_correct = target != IGNORED_LABEL and int(logits[row, place].argmax()) == target
            assert bool(tokens.is_correct[row, place]) == is_correct
    assert tokens.losses[:, -1].tolist() == [0, 0, 0], "what follows a block's last token is not in it"
    assert int(tokens.is_predicted.sum()) == 19 + 11 + 19
    assert tokens.loss_sum.item() == tokens.losses.sum().item()
    expected_sums = [tokens.losses[1, :11].sum().item(), 11]
    assert block_sums(tokens)[1].tolist() == pytest.approx(expected_sums, rel=sum_rounding(20))


def shifted(labels: torch.Tensor) -> torch.Tensor:
    return collate_targets([{"labels": row} for row in labels])["labels"]


def test_sums_of_sources_add_up_to_the_whole(logits_and_labels: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = logits_and_labels
    tokens = token_losses(SimpleNamespace(logits=logits), shifted(labels))
    sources = torch.randint(0, 4, (3, 20), generator=torch.Generator().manual_seed(1))
    items = [{"sources": row, "num_bytes": torch.full((20,), 3)} for row in sources]
    by_source = source_sums(tokens, collate_targets(items), 4)
    torch.testing.assert_close(by_source.sum(dim=0), source_sums(tokens, collate_targets(items), 1)[0])
    assert by_source[:, 2].sum() == 49
    assert by_source[:, 3].sum() == 49 * 3
    of_two = tokens.losses[:, :-1][(sources[:, 1:] == 2) & tokens.is_predicted[:, :-1]]
    assert by_source[2, 0].item() == pytest.approx(of_two.double().sum().item())


def test_every_token_has_the_source_of_its_document(sample_store: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    sources = read_document_sources(sample_store, manifest)
    assert sources is not None
    assert sources.names == ("business", "local", "science", "sport", "world")
    blocks = BlockDataset(sample_store, manifest, "train", sources=sources)
    tracer = BlockProvenance(sample_store, flag="")
    for number in range(0, len(blocks), 5):
        expected = [
            tracer.document(piece.document_id).source
            for piece in tracer.pieces("train", number)
            for _ in range(piece.num_tokens)
        ]
        assert [sources.names[source] for source in blocks[number]["sources"]] == expected


def test_more_sources_than_are_told_apart_are_not_collected(tmp_path: Path) -> None:
    """The second table is not opened any more: it is not there."""
    for num_sources in (64, 65):
        names = [f"source {number % num_sources}" for number in range(100)]
        pq.write_table(pa.table({"document_id": range(100), "source": names}), tmp_path / "first.parquet")
        num_bytes = (tmp_path / "first.parquet").stat().st_size
        shards = [Shard(name, 100, num_bytes, "") for name in ("first.parquet", "missing.parquet")]
        if num_sources > 64:
            assert read_document_sources(tmp_path, SimpleNamespace(documents=shards)) is None
        else:
            with pytest.raises(UserError, match=r"missing\.parquet is missing"):
                read_document_sources(tmp_path, SimpleNamespace(documents=shards))


class Guess(torch.nn.Module):
    """Gives each token the same probability."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> object:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 32000))


# The second is long, and a machine has its files or not: in unit/data/inspect/test_provenance.py are its tokens' bytes.
@pytest.mark.parametrize("tokenizer", ["data/sample/tokenizer", pytest.param("llama2", marks=pytest.mark.long)])
@pytest.mark.guarantee("Bits per byte count every byte of the documents, whatever the tokenizer.")
def test_bits_per_byte_count_every_byte_of_the_text(
    tokenizer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Best fit has no tail, so the bytes of all tokens are those of all documents, in any tokenizer."""
    if tokenizer == "llama2":
        tokenizer = str(request.getfixturevalue("real_data") / "llama2")
    store = tmp_path / "blocks"
    words = ["--packing", "best_fit", "--block_length", 100, "--tokenizer", tokenizer, "--output_dir", store]
    run_forked_fine(*python("preprocess.py", *words, "--max_characters", 4000, "--split", "70,30,0"))
    manifest = read_manifest(store, flag="")
    text_bytes = open_text_bytes(store / "tokenizer", manifest.origin.tokenizer.canary_ids, manifest.origin.token_rules)
    assert text_bytes is not None
    blocks = MixedBlocks([BlockDataset(store, manifest, "validation")])
    counted = [text_bytes.of(blocks, number, blocks[number]["input_ids"].numpy()) for number in range(len(blocks))]
    labels = [blocks[number]["labels"].numpy() != IGNORED_LABEL for number in range(len(blocks))]
    rows = [row for shard in manifest.documents for row in pq.read_table(store / shard.path).to_pylist()]
    expected = sum(row["num_text_bytes"] for row in rows if row["split"] == "validation")
    assert sum(int(row[mask].sum()) for row, mask in zip(counted, labels, strict=True)) == expected

    batches = DataLoader(
        EvaluationBlocks(blocks, text_bytes=text_bytes, multiple=4), batch_size=4, collate_fn=collate_targets
    )
    found = evaluate_blocks(losses_by(Guess()), batches, sources=["all"], device=torch.device("cpu"))
    num_bytes = sum(int(row[1:][mask[1:]].sum()) for row, mask in zip(counted, labels, strict=True))
    assert found["bits_per_byte"] == pytest.approx(math.log2(32000) * found["num_tokens"] / num_bytes)


def test_a_loss_that_stands_out_is_a_spike_however_fast_the_loss_falls() -> None:
    noise = np.random.default_rng(0).normal(scale=0.05, size=400)
    falling = [2 + 7 * math.exp(-step / 60) for step in range(400)]
    detector = SpikeDetector(threshold=8.0)
    assert all(detector.classify(loss, was_skipped=False) is None for loss in np.array(falling) + noise)
    anomaly = detector.classify(2.9, was_skipped=False)
    assert anomaly is not None
    assert anomaly.kind == "spike"
    assert anomaly.score is not None
    assert anomaly.score > 8
    again = SpikeDetector(threshold=8.0, recent_losses=detector.recent_losses).classify(2.9, was_skipped=False)
    assert again == anomaly, "what it knows can be kept"
    assert SpikeDetector(threshold=8.0, recent_losses=[3.0] * 31).classify(9.0, was_skipped=False) is None, "too few"


def test_a_loss_that_stays_up_is_no_spike_for_ever() -> None:
    losses = np.random.default_rng(0).normal(3, 0.01, 700) + np.repeat([0, 1], [200, 500])
    detector = SpikeDetector(threshold=8.0)
    anomalies = []
    for loss in losses.tolist():  # a new one each time, as if each step were resumed
        detector = SpikeDetector(
            threshold=8.0, recent_losses=detector.recent_losses, spike_losses=detector.spike_losses
        )
        anomalies.append(detector.classify(loss, was_skipped=False))
    assert [step for step, anomaly in enumerate(anomalies) if anomaly is not None] == list(range(200, 216))
    assert detector.classify(5.0, was_skipped=False) is not None


def test_equal_losses_make_no_spike_out_of_nothing() -> None:
    detector = SpikeDetector(threshold=8.0, recent_losses=[3.0] * 144)
    assert detector.classify(3.1, was_skipped=False) is None
    assert detector.classify(3.5, was_skipped=False) is not None


@pytest.mark.parametrize(("loss", "was_skipped"), [(math.nan, False), (math.inf, False), (3.0, True)])
def test_what_is_no_number_is_told(loss: float, was_skipped: bool) -> None:
    detector = SpikeDetector(threshold=8.0)
    anomaly = detector.classify(loss, was_skipped=was_skipped)
    assert anomaly is not None
    assert anomaly.kind == "non-finite"
    assert detector.recent_losses == []
