"""Block stores of several inputs and tokenizers, with the text at each line of their input."""

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from pretraining.data.encode.splits import SPLITS
from pretraining.data.inspect.provenance import BlockProvenance, Piece
from tests.conftest import PROJECT_DIR, python
from tests.programs.launching import run_forked_fine

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

    plain = lines("a.jsonl", [*ODD_TEXTS, *STORIES[:14]])
    (folder / "a.jsonl").write_text("".join(plain))
    zipped = ["\n", *lines("b.jsonl.gz", STORIES[14:24], first_line=2)]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(zipped).encode()))
    lines("c.parquet", STORIES[24:34])
    pq.write_table(pa.table({"text": STORIES[24:34]}), folder / "c.parquet", row_group_size=4)
    paragraphs = [story.replace("\n", " ") for story in STORIES[34:42]]
    (folder / "d.txt").write_text("\n\n\n".join(paragraphs) + "\n")
    texts.update({(str(folder / "d.txt"), 1 + 3 * n): text + "\n" for n, text in enumerate(paragraphs)})
    return texts


def llama_like_tokenizer(folder: Path, *, bos_token: str = "<s>") -> Path:
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
    names = {"bos_token": bos_token, "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


# Two are long: each has its packing, its tokenizer and its BOS in another one.
LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("sample", "llama_like")]


@pytest.fixture(scope="session", params=[*LONG, "best_fit", "concat", "bos_is_eos"])
def traced(request: pytest.FixtureRequest, sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    if request.param == "sample":
        texts = {("data/sample/news.jsonl", 1 + n): story for n, story in enumerate(STORIES)}
        return Traced(BlockProvenance(sample_store, flag="--dataset"), texts)
    folder = tmp_path_factory.mktemp(request.param)
    texts = mixed_input(folder)
    more = {
        "best_fit": ["--packing", "best_fit", "--num_slices", 3, "--tokens_per_shard", 5000],
        "concat": ["--add_bos", "--num_slices", 3, "--tokens_per_shard", 5000],
    }.get(request.param, [])
    if not more:
        bos_token = "</s>" if request.param == "bos_is_eos" else "<s>"
        tokenizer = llama_like_tokenizer(folder / "tokenizer", bos_token=bos_token)
        more = ["--tokenizer", tokenizer, "--add_bos", "--num_slices", 2]
    inputs = ["--data_files", *(folder / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt"))]
    length = 16 if request.param == "bos_is_eos" else 64  # so that documents begin at the last position of blocks
    flags = [*inputs, "--split_text_files", "--block_length", length, "--split", "80,15,5", *more]
    run_forked_fine(*python("preprocess.py", *flags, "--output_dir", folder / "blocks"))
    return Traced(BlockProvenance(folder / "blocks", flag="--dataset"), texts)
