"""Every token of every block leads back to its line in the input."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from pretraining.data.encode.splits import SPLITS
from pretraining.data.inspect.provenance import BlockProvenance, has_ids, read_source
from pretraining.data.tokenize.token_bytes import TokenBytes, text_of
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR
from tests.unit.data.inspect.conftest import SAMPLE, Traced


def rows_of(tracer: BlockProvenance, split: str) -> list[dict]:
    """All blocks of a split, in the order of the shards' names."""
    paths = sorted(tracer.folder.glob(f"data/{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.guarantee("Each token of each block can be traced to its line.")
def test_each_piece_is_the_text_at_its_line(traced: Traced) -> None:
    rows = {split: rows_of(traced.tracer, split) for split in SPLITS}
    num_tokens = dict.fromkeys(((split, block) for split in SPLITS for block in range(len(rows[split]))), 0)
    places = set()
    for piece in traced.pieces:
        document = traced.tracer.document(piece.document_id)
        text = traced.texts[document.file, document.line]
        ids, _ = traced.encodings[text]
        assert document.split == piece.split
        assert document.num_tokens == len(ids)
        assert document.num_text_bytes == len(text.encode())
        row = rows[piece.split][piece.block]
        assert piece.start == row["document_starts"][piece.number] == num_tokens[piece.split, piece.block]
        found = row["input_ids"][piece.start : piece.start + piece.num_tokens]
        assert found == ids[piece.num_tokens_before : piece.num_tokens_before + piece.num_tokens]
        num_tokens[piece.split, piece.block] += piece.num_tokens
        places.add((document.file, document.line))
    assert num_tokens == {
        key: traced.tracer.manifest.origin.block_length - rows[key[0]][key[1]]["num_padding_tokens"]
        for key in num_tokens
    }
    assert len(places) > 0.95 * len(traced.texts)


def test_each_position_is_in_its_piece(traced: Traced) -> None:
    splits = traced.tracer.manifest.splits
    for split in SPLITS:
        for block in range(0, splits[split].num_blocks, 97):
            for piece in traced.tracer.pieces(split, block):
                for position in range(piece.start, piece.start + piece.num_tokens):
                    assert traced.tracer.piece_at(split, block, position) == piece


def test_the_source_has_the_text_of_the_ids(traced: Traced) -> None:
    tracer = traced.tracer
    origin = tracer.manifest.origin
    add_bos = origin.token_rules.bos_token_id is not None
    tokenizer = load_document_tokenizer(str(tracer.folder / "tokenizer"), add_bos=add_bos)
    for piece in traced.pieces[:: max(3, len(traced.pieces) // 300)]:
        document = tracer.document(piece.document_id)
        source = read_source(document, origin)
        assert source.text == traced.texts[document.file, document.line]
        ids = tracer.token_ids(piece.split, piece.block)
        place = {"piece": piece, "block_ids": ids, "num_document_tokens": document.num_tokens}
        assert has_ids(source, tokenizer, **place)
        assert not has_ids(dataclasses.replace(source, text=source.text + " and more"), tokenizer, **place)


@pytest.mark.parametrize("name", ["sample", "llama2"])
def test_the_bytes_of_every_token_are_those_of_the_library(name: str, request: pytest.FixtureRequest) -> None:
    folder = PROJECT_DIR / "data/sample/tokenizer" if name == "sample" else request.getfixturevalue("real_data") / name
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token_bytes = TokenBytes(folder)
    anchor = library.encode("a", add_special_tokens=False).ids
    for token in range(library.get_vocab_size()):
        if library.id_to_token(token) in ("ÿ", "<0xFF>"):
            continue  # a byte that no text has
        ids = [*anchor, token, *anchor]
        ours = text_of(token_bytes.join(np.array(ids)).data.tobytes())
        assert ours.removeprefix(" ") == library.decode(ids).removeprefix(" "), token


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
def test_a_decoder_that_does_more_than_put_bytes_together_is_refused(tmp_path: Path, decoder: dict | None) -> None:
    content = json.loads((PROJECT_DIR / "data/sample/tokenizer/tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "decoder": decoder}))
    with pytest.raises(UserError, match="does not concatenate the bytes of tokens"):
        TokenBytes(tmp_path).check(library_ids("two words"))


def library_ids(text: str) -> list[int]:
    return Tokenizer.from_file(str(PROJECT_DIR / "data/sample/tokenizer/tokenizer.json")).encode(text).ids


def test_a_source_that_is_gone_or_changed(sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = BlockProvenance(sample_store, flag="--dataset")
    document = tracer.document(7)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"news\.jsonl: not found"):
        read_source(document, tracer.manifest.origin)
    copy = tmp_path / document.file
    copy.parent.mkdir(parents=True)
    content = SAMPLE.read_bytes()
    copy.write_bytes(content + b"\n")
    with pytest.raises(UserError, match="has changed, from"):
        read_source(document, tracer.manifest.origin)
    copy.write_bytes(content[: document.byte_offset] + b"?" * (len(content) - document.byte_offset))
    with pytest.raises(UserError, match=r"news\.jsonl:8: has changed, the line is not a document now"):
        read_source(document, tracer.manifest.origin)
    with pytest.raises(UserError, match=r"news\.jsonl:8: is a conversation; the chat template made its tokens"):
        read_source(document, dataclasses.replace(tracer.manifest.origin, chat_template="{{ messages }}"))


def test_a_shard_that_is_missing_is_named(sample_store: Path, tmp_path: Path) -> None:
    for path in ("manifest.json", *(str(p.relative_to(sample_store)) for p in sample_store.glob("documents/*"))):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((sample_store / path).read_bytes())
    tracer = BlockProvenance(tmp_path, flag="--dataset")
    assert tracer.document(0).line == 1
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet is missing"):
        tracer.pieces("train", 0)
