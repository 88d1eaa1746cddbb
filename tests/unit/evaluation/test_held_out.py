"""Documents on their own have the ids of training, and every byte of their text is counted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pretraining.data.input.find import find_inputs
from pretraining.data.store.manifest import read_manifest
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.evaluation.held_out import DEFAULT_READING_OPTIONS, HeldOutDocuments, tokenizer_of_model
from pretraining.evaluation.windows import TextWindow, split_into_windows
from pretraining.training.model.tokenizer import tokenizer_for_model
from tests.conftest import python
from tests.programs.launching import run_forked_fine
from tests.unit.data.tokenize.test_backends import per_text
from tests.unit.data.tokenize.test_tokenizer import ODD_TEXTS


@pytest.mark.parametrize(("tokenizer", "add_bos"), [("sample", True), ("sample", False), ("llama2", True)])
def test_documents_are_those_of_training(
    tokenizer: str, add_bos: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = "data/sample/tokenizer" if tokenizer == "sample" else str(request.getfixturevalue("real_data") / "llama2")
    words = ["--tokenizer", name, "--block_length", 64, "--output_dir", tmp_path / "blocks"]
    run_forked_fine(*python("preprocess.py", *words, "--add_bos", str(add_bos).lower()))
    manifest = read_manifest(tmp_path / "blocks", flag="")
    tokenizer_for_model(tmp_path / "blocks", manifest.origin, max_length=64).save_pretrained(tmp_path / "model")
    texts = [text for text in ODD_TEXTS if text.strip()]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps({"text": text, "source": "odd"}) + "\n" for text in [*texts, ""]), "utf-8")

    of_model = tokenizer_of_model(PreTrainedTokenizerFast.from_pretrained(tmp_path / "model"))
    documents = HeldOutDocuments(find_inputs([str(path)]), DEFAULT_READING_OPTIONS, of_model)
    passages = list(documents)
    expected = per_text(load_document_tokenizer(name, add_bos=add_bos).encode(texts))
    for text, passage, ids in zip(texts, passages, expected, strict=True):
        assert passage.ids.tolist() == ids.tolist()
        assert passage.num_bytes.sum() == len(text.encode())
        assert not add_bos or passage.num_bytes[0] == 0, "with BOS every byte is predicted"
    assert documents.num_documents == {"odd": len(texts)}
    assert documents.num_text_bytes == {"odd": sum(len(text.encode()) for text in texts)}
    assert documents.skipped_lines == {"empty_text": 1}


@pytest.mark.parametrize("window_tokens", [2, 3, 8])
def test_each_token_is_predicted_once(window_tokens: int) -> None:
    for num_tokens, num_context_tokens in itertools.product([1, 2, 7, 8, 9, 12, 30], [1, 5, 17]):
        passage = TextWindow("", np.arange(num_tokens), np.arange(num_tokens), num_context_tokens)
        windows = list(split_into_windows(passage, window_tokens=window_tokens))
        predicted = [token for window in windows for token in window.ids[window.num_context_tokens :].tolist()]
        assert predicted == list(range(num_context_tokens, num_tokens))
        for window in windows:
            assert len(window.ids) <= window_tokens
            assert window.num_context_tokens >= min(num_context_tokens, window_tokens // 2), (
                "something to predict it from"
            )
            assert window.ids.tolist() == window.num_bytes.tolist()
