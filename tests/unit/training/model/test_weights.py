"""The tensors of a parent model: each by itself, in its shape, with the rows that a vocabulary gets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig

from pretraining.cli.arguments.pretrain import ParentModel, parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.training.model import weights as weights_module
from pretraining.training.model.weights import (
    EMBEDDING,
    HEAD,
    ParentWeights,
    agreed_hashes,
    expected_shapes,
    initial_weights,
)
from tests.fakes.exported import export_random_model

NUM_NEW = 5


def parent_of(folder: Path, *, tokenizer: bool = True) -> ParentModel:
    return ParentModel(str(folder), "--weights m", "m", "m", str(folder) if tokenizer else None)


def config_of(folder: Path, **changes: object) -> LlamaConfig:
    return LlamaConfig.from_dict({**json.loads((folder / "config.json").read_text()), **changes})


@pytest.fixture
def model(sample_store: Path, tmp_path: Path) -> Path:
    return export_random_model(tmp_path / "model", sample_store)


def test_every_tensor_is_read_as_it_stands(model: Path) -> None:
    weights, stored = (
        ParentWeights(parent_of(model), config_of(model), grows=False),
        load_file(model / "model.safetensors"),
    )
    assert expected_shapes(config_of(model)).keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(weights.read(name), tensor)


@pytest.mark.parametrize("is_tied", [False, True])
def test_new_rows_are_the_mean_of_the_parents_tokens(sample_store: Path, tmp_path: Path, is_tied: bool) -> None:
    model = export_random_model(tmp_path / "model", sample_store, tie_word_embeddings=is_tied)
    stored = load_file(model / "model.safetensors")
    num_tokens = len(stored[EMBEDDING])
    assert num_tokens == max(Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab().values()) + 1
    weights = ParentWeights(parent_of(model), config_of(model, vocab_size=num_tokens + NUM_NEW), grows=True)
    assert (HEAD in stored) != is_tied
    for name in {EMBEDDING, HEAD} & stored.keys():
        grown = weights.read(name)
        assert torch.equal(grown[:num_tokens], stored[name])
        mean = stored[name].double().mean(dim=0).float()
        torch.testing.assert_close(grown[num_tokens:], mean.expand(NUM_NEW, -1))
    other = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights.read(other), stored[other])


def test_rows_that_only_pad_the_vocabulary_are_new_as_well(model: Path) -> None:
    stored = load_file(model / "model.safetensors")
    num_tokens = len(stored[EMBEDDING])
    padded = {name: torch.cat([stored[name], torch.full((7, 64), 9.0)]) for name in (EMBEDDING, HEAD)}
    save_file(stored | padded, model / "model.safetensors")
    config = config_of(model, vocab_size=num_tokens + 7)
    assert torch.equal(ParentWeights(parent_of(model), config, grows=False).read(HEAD), padded[HEAD])
    grown = ParentWeights(parent_of(model), config, grows=True).read(HEAD)
    torch.testing.assert_close(grown[num_tokens:], stored[HEAD].double().mean(dim=0).float().expand(7, -1))
    unknown = ParentWeights(parent_of(model, tokenizer=False), config, grows=True).read(HEAD)
    assert torch.equal(unknown, padded[HEAD]), "without a tokenizer all rows count as tokens"


def test_what_is_not_the_model_of_its_config_is_one_line(model: Path) -> None:
    stored = load_file(model / "model.safetensors")
    up = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "model.layers.1.mlp.up_proj.weight is missing": {n: t for n, t in stored.items() if n != up},
        "model.layers.0.self_attn.q_proj.bias is not in a Llama": stored
        | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)},
        r"has the shape \(128, 63\), its config needs \(128, 64\)": stored | {up: stored[up][:, :63].contiguous()},
        "is I8, which is not trained": stored | {up: stored[up].to(torch.int8)},
    }
    for message, tensors in cases.items():
        save_file(tensors, model / "model.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            ParentWeights(parent_of(model), config_of(model), grows=False)
        assert len(str(caught.value).splitlines()) == 1
    save_file(stored | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, model / "model.safetensors")
    ParentWeights(parent_of(model), config_of(model), grows=False)
    with pytest.raises(UserError, match="has the shape"):
        ParentWeights(parent_of(model), config_of(model, vocab_size=9000), grows=False)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        ParentWeights(parent_of(model), config_of(model), grows=False)


def test_a_tied_head_is_that_of_the_embeddings(model: Path, tmp_path: Path) -> None:
    stored, config = load_file(model / "model.safetensors"), config_of(model, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"differs from model\.embed_tokens\.weight, which its config ties"):
        ParentWeights(parent_of(model), config, grows=False).check_tied()
    other = shutil.copytree(model, tmp_path / "other")
    save_file(stored | {HEAD: stored[EMBEDDING].clone()}, other / "model.safetensors")
    ParentWeights(parent_of(other), config, grows=False).check_tied()


def test_machines_must_see_the_same_files(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Of the processes of a machine only the first has read them; the others have none, or those of the record."""

    def agreed(*found: tuple[dict[str, str] | None, int]) -> object:
        monkeypatch.setattr(weights_module, "all_gather_objects", lambda _: list(found))
        return agreed_hashes(parent_of(model), None)

    assert agreed(({"a": "1"}, 0), (None, 1), ({"a": "1"}, 0), ({"b": "0"}, 1)) == {"a": "1"}
    assert agreed((None, 0), (None, 1)) is None, "trial steps"
    for other in ({"a": "2"}, {"b": "1"}, None):
        with pytest.raises(UserError, match=r"--weights m: the processes see different files"):
            agreed(({"a": "1"}, 0), (None, 1), (other, 0))
    monkeypatch.setattr(weights_module, "all_gather_objects", None)
    assert agreed_hashes(None, None) is None, "without a parent nothing is sent"


def test_the_first_process_of_a_machine_reads_all_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse_pretrain_arguments("", ["--weights", str(model)])
    arguments = replace(arguments, parent=parent_of(model))
    recorded = {"model.safetensors": "recorded"}
    found = initial_weights(arguments, config_of(model), recorded)
    assert found is not None
    assert found.keys() == {"model.safetensors"}
    assert found != recorded
    trial = replace(arguments, plan=replace(arguments.plan, profile_plan=True))
    assert initial_weights(trial, config_of(model), recorded) is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert initial_weights(arguments, config_of(model), recorded) == recorded
    assert initial_weights(arguments, config_of(model), None) is None
