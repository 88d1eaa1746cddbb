"""The flags of a fine-tuning run once its model is found: block length, run folder, tokenizer."""

import json
import shutil
from pathlib import Path

import pytest

from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.errors import UserError
from pretraining.finetuning.inputs import FinetuneInputs, find_inputs_of, load_model_tokenizer
from tests.fakes.exported import SHAPE, export_random_model


@pytest.fixture
def model(sample_store: Path, tmp_path: Path) -> Path:
    return export_random_model(tmp_path / "run/model", sample_store)


def inputs_of(model: Path, *flags: str) -> FinetuneInputs:
    return find_inputs_of(parse_finetune_arguments("", ["--model", str(model), "--data_files", "x.jsonl", *flags]))


def test_a_run_folder_gives_model_block_length_and_run_folder(model: Path) -> None:
    (model.parent / "run.json").write_text(json.dumps({"identity": {"precision": "fp32", "model_config": {}}}))
    found = inputs_of(model.parent, "--dry_run")
    assert found.run.parent is not None
    assert (found.run.parent.folder, found.run.parent.place) == (str(model), f"--model {model.parent}")
    assert found.run.data.block_length == SHAPE["max_position_embeddings"]
    assert found.run.trainer["output_dir"] == "runs/run-finetuned"
    assert found.tokenizer_dir == model
    shutil.rmtree(model)
    with pytest.raises(UserError, match="neither an exported model nor a complete checkpoint"):
        inputs_of(model.parent, "--dry_run")


def test_the_tokenizer_of_a_checkpoint_is_that_of_its_run(model: Path) -> None:
    checkpoint = model.rename(model.with_name("checkpoint"))
    (checkpoint.parent / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).rename(checkpoint.parent / "tokenizer" / name)
    assert inputs_of(checkpoint, "--dry_run").tokenizer_dir == checkpoint.parent / "tokenizer"
    shutil.rmtree(checkpoint.parent / "tokenizer")
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        inputs_of(checkpoint, "--dry_run")


def test_bos_and_eos_may_be_those_of_the_class(sample_store: Path, tmp_path: Path) -> None:
    model = export_random_model(tmp_path / "model", sample_store, add_bos=True)
    named = load_model_tokenizer(model)
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    assert load_model_tokenizer(model).rules == named.rules
    assert named.rules.bos_token_id is not None
