"""Documents in one block: isolated, they do not see each other; not isolated, they do."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.store.manifest import Manifest, read_manifest
from pretraining.training.data.batch import BOUNDS, Batch, collate_targets, model_inputs
from pretraining.training.data.dataset import IGNORED_LABEL, BlockDataset, BlockFields
from tests.conftest import python
from tests.programs.launching import run_forked_fine
from tests.rounding import assert_same_sums, path_length

HAS_FLASH = importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def model(implementation: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8192, use_cache=False, **SHAPE)
    made = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return made.eval().to("cuda", torch.bfloat16) if implementation.startswith("flash") else made.eval()


@pytest.fixture(scope="module")
def manifest(sample_store: Path) -> Manifest:
    return read_manifest(sample_store, flag="")


@pytest.fixture(scope="module")
def isolated(sample_store: Path, manifest: Manifest) -> BlockDataset:
    return BlockDataset(sample_store, manifest, "train", fields=BlockFields(document_masking=True))


@pytest.fixture(scope="module")
def batch(isolated: BlockDataset) -> tuple[Batch, list[int]]:
    """Three blocks in each of which a document begins, and where."""
    found = [number for number in range(200) if (isolated[number]["position_ids"][5:-5] == 0).any()][:3]
    assert len(found) == 3
    items = [isolated[number] for number in found]
    borders = [int((item["position_ids"][5:-5] == 0).nonzero()[0]) + 5 for item in items]
    return collate_targets(items), borders


@torch.no_grad()
def logits(network: PreTrainedModel, batch: Batch, *, in_one_row: bool) -> torch.Tensor:
    moved = {name: values.to(network.device) for name, values in batch.items()}
    output = network(**model_inputs(moved, in_one_row=in_one_row)).logits
    return output.view(*batch["input_ids"].shape, -1).float().cpu()


def with_other_first_documents(batch: Batch, borders: list[int]) -> Batch:
    ids = batch["input_ids"].clone()
    for row, border in enumerate(borders):
        ids[row, :border] = (ids[row, :border] + 1000) % 8192
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize(
    ("implementation", "in_one_row"),
    [
        ("eager", False),
        ("sdpa", False),
        ("eager", True),  # the rows one after another, as flash attention takes them
        ("sdpa", True),
        pytest.param(
            "flash_attention_2", True, marks=pytest.mark.skipif(not HAS_FLASH, reason="flash-attn or GPU missing")
        ),
    ],
)
@pytest.mark.guarantee(
    "With document masking, documents do not change the logits of others, in eager and sdpa attention."
)
def test_a_document_does_not_change_another(
    batch: tuple[Batch, list[int]], implementation: str, in_one_row: bool
) -> None:
    blocks, borders = batch
    network = model(implementation)
    before = logits(network, blocks, in_one_row=in_one_row)
    after = logits(network, with_other_first_documents(blocks, borders), in_one_row=in_one_row)
    for row, border in enumerate(borders):
        # What is masked is added as an exact 0, at the same place of the same sums.
        assert torch.equal(after[row, border:], before[row, border:])
        assert not torch.allclose(after[row, :border], before[row, :border], atol=1e-3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_each_document_is_as_if_it_stood_alone(batch: tuple[Batch, list[int]], implementation: str) -> None:
    blocks, borders = batch
    network = model(implementation)
    found = logits(network, blocks, in_one_row=False)
    in_one_row = logits(network, blocks, in_one_row=True)
    assert_same_sums(found, in_one_row, path_length(network.config, in_one_row.shape[:2].numel()))
    for row, border in enumerate(borders):
        ends = (blocks["position_ids"][row, border + 1 :] == 0).nonzero()
        end = border + 1 + int(ends[0]) if len(ends) else 64
        with torch.no_grad():
            alone = network(blocks["input_ids"][row : row + 1, border:end]).logits[0]
        assert_same_sums(found[row, border:end], alone, path_length(network.config, 64))


def test_bounds_of_documents_are_found_when_a_batch_is_collated(batch: tuple[Batch, list[int]]) -> None:
    blocks, borders = batch
    starts = [place for place, position in enumerate(blocks["position_ids"].flatten().tolist()) if position == 0]
    assert blocks[BOUNDS].tolist() == [*starts, 3 * 64]
    assert blocks[BOUNDS].dtype == torch.int32
    assert {64 * row + border for row, border in enumerate(borders)} <= set(starts)
    inputs = model_inputs(blocks, in_one_row=True)
    assert inputs["cu_seq_lens_q"] is inputs["cu_seq_lens_k"] is blocks[BOUNDS]
    assert inputs["max_length_q"] == inputs["max_length_k"] == 64
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, 3 * 64)


def test_without_isolation_documents_see_each_other(batch: tuple[Batch, list[int]]) -> None:
    blocks, borders = batch
    plain = {name: values for name, values in blocks.items() if name != "position_ids"}
    network = model("sdpa")
    before = logits(network, plain, in_one_row=False)
    after = logits(network, with_other_first_documents(plain, borders), in_one_row=False)
    assert not torch.allclose(after[0, borders[0] :], before[0, borders[0] :], atol=1e-3)
    given = {**model_inputs(blocks, in_one_row=False), "attention_mask": torch.ones_like(blocks["input_ids"])}
    with torch.no_grad():
        masked = network(**given).logits
    assert not torch.allclose(masked, logits(network, blocks, in_one_row=False), atol=1e-3), (
        "an attention mask undoes it"
    )


def test_positions_begin_anew_where_documents_do(isolated: BlockDataset, sample_store: Path) -> None:
    tracer = BlockProvenance(sample_store, flag="")
    for number in range(60):
        pieces = tracer.pieces("train", number)
        expected = torch.cat([torch.arange(piece.num_tokens) for piece in pieces])
        assert torch.equal(isolated[number]["position_ids"], expected)


def test_padding_has_positions_of_its_own(tmp_path: Path) -> None:
    run_forked_fine(
        *python("preprocess.py", "--packing", "best_fit", "--block_length", 1000, "--output_dir", tmp_path / "b")
    )
    manifest = read_manifest(tmp_path / "b", flag="")
    blocks = BlockDataset(tmp_path / "b", manifest, "train", fields=BlockFields(document_masking=True))
    padded = next(item for item in map(blocks.__getitem__, range(len(blocks))) if item["labels"][-1] == IGNORED_LABEL)
    begin = int((padded["labels"] == IGNORED_LABEL).nonzero()[0])
    assert torch.equal(padded["position_ids"][begin:], torch.arange(1000 - begin))


def test_the_first_token_of_a_document_is_masked_if_asked(sample_store: Path, manifest: Manifest) -> None:
    masking = BlockDataset(sample_store, manifest, "train", fields=BlockFields(ignore_first_token=True))
    plain = BlockDataset(sample_store, manifest, "train")
    tracer = BlockProvenance(sample_store, flag="")
    for number in range(60):
        starts = [piece.start for piece in tracer.pieces("train", number)]
        labels = plain[number]["labels"].clone()
        labels[starts] = IGNORED_LABEL
        assert torch.equal(masking[number]["labels"], labels)
        assert "position_ids" not in masking[number]
