"""Every token of every block leads back to its line in the input, and a text to every block that has it."""

import gzip
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from pretraining.cli.progress import Progress
from pretraining.data.encode.splits import SPLITS
from pretraining.data.inspect.provenance import BlockProvenance, Piece, has_ids, read_source_text
from pretraining.data.inspect.search import find_text
from pretraining.data.tokenize.token_bytes import TokenBytes, text_of
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR, python, run_fine

SAMPLE = PROJECT_DIR / "data/sample/news.jsonl"
STORIES = [json.loads(line)["text"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
ODD_TEXTS = [
    " begins with a space, has </s> and <s> and <unk> as text </s>",
    "emoji 🚆🚆 and 👩\u200d👩\u200d👧 at the end 🚆",
    "東京の電車は速い。" * 30,
    "aaaa" * 100 + "b" + "aaaa" * 100,
    "  two spaces\t\ttabs\n\n\nand newlines\r\n " * 8,
]


@dataclass(frozen=True)
class Traced:
    """A store, and the text at each (file, line) of its input."""

    tracer: BlockProvenance
    texts: dict[tuple[str, int], str]

    @cached_property
    def pieces(self) -> list[Piece]:
        splits = self.tracer.manifest.splits
        blocks = [(split, block) for split in SPLITS for block in range(splits[split].num_blocks)]
        return [piece for split, block in blocks for piece in self.tracer.pieces(split, block)]

    @cached_property
    def encodings(self) -> dict[str, tuple[list[int], np.ndarray]]:
        """Ids of each text, control tokens included, and the characters that each is made of."""
        tokenizer = Tokenizer.from_file(str(self.tracer.folder / "tokenizer/tokenizer.json"))
        tokenizer.encode_special_tokens = True
        bos = self.tracer.manifest.origin.token_rules.bos_token_id
        before, no_characters = ([], []) if bos is None else ([bos], [(-1, -1)])
        encodings = {}
        for text in self.texts.values():
            encoding = tokenizer.encode(text, add_special_tokens=False)
            offsets = encoding.offsets
            if encoding.tokens[0] == "▁":  # of no character, though the library gives it those of the next token
                offsets = [(-1, -1), *offsets[1:]]
            encodings[text] = ([*before, *encoding.ids, 2], np.array([*no_characters, *offsets, (-1, -1)]))
        return encodings

    @cached_property
    def documents(self) -> list[tuple[str, dict[int, tuple[Piece, int]]]]:
        """Text of each document, and of each of its tokens that is in a block the piece and the position there."""
        owners: dict[int, dict[int, tuple[Piece, int]]] = defaultdict(dict)
        for piece in self.pieces:
            for n in range(piece.num_tokens):
                owners[piece.document_id][piece.num_tokens_before + n] = (piece, piece.start + n)
        return [(self.text_of(document_id), owner) for document_id, owner in owners.items()]

    def text_of(self, document_id: int) -> str:
        document = self.tracer.document(document_id)
        return self.texts[document.file, document.line]


def mixed_input(folder: Path) -> dict[tuple[str, int], str]:
    """Four files in four formats; returns the text of each line that is a document."""
    texts: dict[tuple[str, int], str] = {}

    def lines(name: str, documents: list[str], first_line: int = 1) -> list[str]:
        texts.update({(str(folder / name), first_line + n): text for n, text in enumerate(documents)})
        return [json.dumps({"text": text}) + "\n" for text in documents]

    plain = lines("a.jsonl", [*ODD_TEXTS, *STORIES[:50]])
    (folder / "a.jsonl").write_text("".join(plain))
    zipped = ["\n", *lines("b.jsonl.gz", STORIES[50:90], first_line=2)]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(zipped).encode()))
    lines("c.parquet", STORIES[90:120])
    pq.write_table(pa.table({"text": STORIES[90:120]}), folder / "c.parquet", row_group_size=7)
    paragraphs = [story.replace("\n", " ") for story in STORIES[120:]]
    (folder / "d.txt").write_text("\n\n\n".join(paragraphs) + "\n")
    texts.update({(str(folder / "d.txt"), 1 + 3 * n): text + "\n" for n, text in enumerate(paragraphs)})
    return texts


def llama_like_tokenizer(folder: Path) -> Path:
    """A small tokenizer with the pipeline of Llama 2: U+2581 for spaces, one before each text, bytes as <0xNN>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([word for story in STORIES[:40] for word in story.split()], trainer)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    vocab.setdefault("▁", len(vocab))
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module", params=["sample", "best_fit", "concat", "llama_like"])
def traced(request: pytest.FixtureRequest, sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    if request.param == "sample":
        texts = {("data/sample/news.jsonl", 1 + n): story for n, story in enumerate(STORIES)}
        return Traced(BlockProvenance(sample_store, flag="--dataset"), texts)
    folder = tmp_path_factory.mktemp(request.param)
    texts = mixed_input(folder)
    more = {
        "best_fit": ["--packing", "best_fit", "--num_slices", 3, "--tokens_per_shard", 3000],
        "concat": ["--add_bos", "--num_slices", 3, "--tokens_per_shard", 3000],
        "llama_like": [],
    }[request.param]
    if request.param == "llama_like":
        more = ["--tokenizer", llama_like_tokenizer(folder / "tokenizer"), "--add_bos", "--num_slices", 2]
    inputs = ["--data_files", *(folder / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt"))]
    flags = [*inputs, "--split_text_files", "--block_length", 64, "--split", "80,15,5", *more]
    run_fine(*python("preprocess.py", *flags, "--output_dir", folder / "blocks"))
    return Traced(BlockProvenance(folder / "blocks", flag="--dataset"), texts)


def rows_of(tracer: BlockProvenance, split: str) -> list[dict]:
    """All blocks of a split, in the order of the shards' names."""
    paths = sorted(tracer.folder.glob(f"data/{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


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
    assert num_tokens == {key: 64 - rows[key[0]][key[1]]["num_padding_tokens"] for key in num_tokens}
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
    for piece in traced.pieces[::3]:
        document = tracer.document(piece.document_id)
        text = read_source_text(document, origin)
        assert text == traced.texts[document.file, document.line]
        ids = tracer.token_ids(piece.split, piece.block)
        place = {"piece": piece, "block_ids": ids, "num_document_tokens": document.num_tokens}
        assert has_ids(text, tokenizer, **place)
        assert not has_ids(text + " and more", tokenizer, **place)


Found = set[tuple[Piece, int]]


def by_brute_force(traced: Traced, wanted: str) -> Found:
    """Each piece with `wanted` or a part of it and the first token of that, from texts and tokens' characters alone."""
    first: dict[Piece, int] = {}
    for text, owner in traced.documents:
        _, characters = traced.encodings[text]
        at = -1
        while (at := text.find(wanted, at + 1)) >= 0:
            tokens = np.flatnonzero((characters[:, 0] < at + len(wanted)) & (characters[:, 1] > at)).tolist()
            if all(token in owner for token in tokens):
                for piece, position in map(owner.__getitem__, tokens):
                    first[piece] = min(first.get(piece, position), position)
    return set(first.items())


def by_search(traced: Traced, wanted: str) -> Found:
    hits = list(find_text(traced.tracer, SPLITS, wanted, progress=Progress(1), num_workers=2))
    assert len({hit.piece for hit in hits}) == len(hits), "a piece is told twice"
    return {(hit.piece, hit.position) for hit in hits}


def wanted_texts(traced: Traced) -> list[str]:
    odd = ["</s>", "<s>", "<unk>", "🚆", "🚆🚆", "👩\u200d👩", "電車", "aaab", "a" * 300, "  ", "\n\n", " ", "e"]
    starts = [start for text in ODD_TEXTS + STORIES[:4] for start in (text[:12], " " + text[:12])]
    generator = random.Random(7)
    parts = []
    for length in (2, 3, 7, 20, 60, 200, 500, 2000):
        for text in generator.sample(sorted(traced.texts.values()), 4):
            begin = generator.randrange(max(1, len(text) - length))
            parts.append(text[begin : begin + length])
    return [*odd, *starts, *parts, "in no text of these", "\ufffd"]


def test_a_text_is_found_wherever_it_is_and_nowhere_else(traced: Traced) -> None:
    num_over_cuts = 0
    for wanted in wanted_texts(traced):
        expected = by_brute_force(traced, wanted)
        assert by_search(traced, wanted) == expected, wanted
        num_over_cuts += len(expected) > 1
    assert num_over_cuts > 20


def test_each_pair_of_blocks_is_found_by_the_text_over_its_cut(traced: Traced) -> None:
    continued = [piece for piece in traced.pieces if piece.num_tokens_before > 3]
    for piece in continued[:: max(1, len(continued) // 25)]:
        text = traced.text_of(piece.document_id)
        _, characters = traced.encodings[text]
        cut = characters[piece.num_tokens_before][0]
        wanted = text[max(0, cut - 9) : cut + 5]
        assert by_search(traced, wanted) == by_brute_force(traced, wanted), wanted


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
        read_source_text(document, tracer.manifest.origin)
    copy = tmp_path / document.file
    copy.parent.mkdir(parents=True)
    content = SAMPLE.read_bytes()
    copy.write_bytes(content + b"\n")
    with pytest.raises(UserError, match="has changed, from"):
        read_source_text(document, tracer.manifest.origin)
    copy.write_bytes(content[: document.byte_offset] + b"?" * (len(content) - document.byte_offset))
    with pytest.raises(UserError, match=r"news\.jsonl:8: has changed, the line is not a document now"):
        read_source_text(document, tracer.manifest.origin)


def test_a_shard_that_is_missing_is_named(sample_store: Path, tmp_path: Path) -> None:
    for path in ("manifest.json", *(str(p.relative_to(sample_store)) for p in sample_store.glob("documents/*"))):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((sample_store / path).read_bytes())
    tracer = BlockProvenance(tmp_path, flag="--dataset")
    assert tracer.document(0).line == 1
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet is missing"):
        tracer.pieces("train", 0)
