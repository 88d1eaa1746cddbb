"""The tokenizer that travels with a model gives everybody the ids of training, and its BOS rule."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pretraining.data.store.manifest import read_manifest
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from pretraining.generation.load_model import check_canary
from pretraining.training.model.tokenizer import tokenizer_for_model
from tests.conftest import PROJECT_DIR, python
from tests.programs.launching import run_forked_fine
from tests.unit.data.tokenize.test_backends import per_text
from tests.unit.data.tokenize.test_tokenizer import ODD_TEXTS


def check_auto_tokenizer(tokenizer_dir: Path, tmp_path: Path, *, add_bos: bool) -> None:
    flags = ["--tokenizer", tokenizer_dir, "--block_length", 64, "--output_dir", tmp_path / "blocks"]
    run_forked_fine(*python("preprocess.py", *flags, "--add_bos", str(add_bos).lower()))
    manifest = read_manifest(tmp_path / "blocks", flag="")
    tokenizer_for_model(tmp_path / "blocks", manifest.origin, max_length=64).save_pretrained(tmp_path / "model")
    opened = AutoTokenizer.from_pretrained(tmp_path / "model")
    trained = per_text(load_document_tokenizer(str(tokenizer_dir), add_bos=add_bos).encode(ODD_TEXTS))
    for text, ids in zip(ODD_TEXTS, trained, strict=True):
        assert opened(text)["input_ids"] == ids[:-1].tolist(), repr(text)
    assert opened.eos_token_id == 2
    check_canary(PreTrainedTokenizerFast.from_pretrained(tmp_path / "model"), "model")


@pytest.mark.parametrize("add_bos", [False, True])
def test_auto_tokenizer_gives_the_ids_of_training(add_bos: bool, tmp_path: Path) -> None:
    check_auto_tokenizer(PROJECT_DIR / "data/sample/tokenizer", tmp_path, add_bos=add_bos)


def test_a_model_with_another_tokenizer_is_not_sampled_from(sample_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    tokenizer_for_model(sample_store, manifest.origin, max_length=64).save_pretrained(tmp_path)
    other = (
        (tmp_path / "tokenizer.json")
        .read_text(encoding="utf-8")
        .replace('"add_prefix_space":false', '"add_prefix_space":true')
    )
    other = other.replace('"add_prefix_space": false', '"add_prefix_space": true')
    (tmp_path / "tokenizer.json").write_text(other, encoding="utf-8")
    with pytest.raises(UserError, match="gives other ids here than in training"):
        check_canary(PreTrainedTokenizerFast.from_pretrained(tmp_path), "model")


# Without BOS it is long: the test of the sample's tokenizer above holds that rule, and the other case these files.
@pytest.mark.parametrize("add_bos", [pytest.param(False, marks=pytest.mark.long), True])
def test_so_it_does_for_llama2_which_transformers_would_rebuild(add_bos: bool, real_data: Path, tmp_path: Path) -> None:
    check_auto_tokenizer(real_data / "llama2", tmp_path, add_bos=add_bos)
