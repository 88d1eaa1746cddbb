"""Ids that were made elsewhere get the control tokens, the split and the size that their text would get."""

import json
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.encode.token_documents import IdDecoder, join_ids
from pretraining.data.input.documents import Document
from pretraining.data.tokenize.backends import FlatIds
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, load_document_tokenizer
from tests.conftest import PROJECT_DIR
from tests.unit.data.build.test_partial_store import stories
from tests.unit.data.tokenize.test_tokenizer import ODD_TEXTS

SAMPLE = PROJECT_DIR / "data/sample/tokenizer"
TEXTS = [*ODD_TEXTS, *stories()[:20]]


def plain_ids(tokenizer: DocumentTokenizer, texts: list[str]) -> FlatIds:
    """The ids of texts without control tokens, the last being EOS."""
    documents = [np.array(tokenizer.encode([text]).ids[:-1]) for text in texts]
    return FlatIds(np.concatenate(documents), np.array([len(ids) for ids in documents]))


@pytest.mark.parametrize("name", ["sample", "llama2"])
def test_the_text_of_ids_is_the_text_that_made_them(name: str, request: pytest.FixtureRequest) -> None:
    folder = SAMPLE if name == "sample" else request.getfixturevalue("real_data") / name
    tokenizer = load_document_tokenizer(str(folder), add_bos=False)
    decoder = IdDecoder(tokenizer)
    assert [text.decode() for text in decoder.texts(plain_ids(tokenizer, TEXTS))] == TEXTS


def test_a_decoder_that_does_more_than_join_bytes_is_the_library(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "tokenizer.json").read_text())
    steps = [content["decoder"], {"type": "Replace", "pattern": {"Regex": "council"}, "content": "Council"}]
    content["decoder"] = {"type": "Sequence", "decoders": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_bytes((SAMPLE / "tokenizer_config.json").read_bytes())
    tokenizer = load_document_tokenizer(str(tmp_path), add_bos=False)
    assert IdDecoder(tokenizer).texts(plain_ids(tokenizer, ["the council", "é"])) == [b"the Council", "é".encode()]


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_bos_is_not_doubled(add_bos: bool) -> None:
    tokenizer = load_document_tokenizer(str(SAMPLE), add_bos=add_bos)
    bos_token_id = tokenizer.rules.bos_token_id
    documents = [Document("", None, 1, 0, np.array(ids, np.uint16)) for ids in ([1, 7, 8], [9])]
    flat = tokenizer.surround(join_ids(documents, bos_token_id=bos_token_id))
    assert flat.ids.tolist() == ([1, 7, 8, 2, 1, 9, 2] if add_bos else [1, 7, 8, 2, 9, 2])
    assert flat.lengths.tolist() == ([4, 3] if add_bos else [4, 2])
    assert len(join_ids([], bos_token_id=None).ids) == 0
