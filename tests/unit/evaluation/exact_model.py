"""A model that knows: its next-token probabilities are those of the grammar, exactly, one token for each byte."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from preprocess import main as preprocess
from pretraining.data.store.manifest import read_manifest
from pretraining.data.tokenize.token_bytes import BYTE_OF
from pretraining.data.tokenize.train import save_tokenizer, train_byte_level_bpe
from pretraining.training.model.tokenizer import tokenizer_for_model
from small_world.grammar import World
from small_world.reading import END, next_bytes

BOS, EOS, NUM_IDS = 1, 2, 259
IMPOSSIBLE = -1e4  # the logit of a byte that cannot follow
BLOCK_LENGTH = 512


class ExactModel(torch.nn.Module):
    """Stands where an exported model does. A story is what follows the last BOS; after EOS comes BOS."""

    device = torch.device("cpu")

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=NUM_IDS, max_position_embeddings=BLOCK_LENGTH)
        self._world = world
        names = tokenizer.get_vocab()
        self._byte_of = {number: BYTE_OF[name] for name, number in names.items() if name in BYTE_OF}
        self._known: dict[bytes, torch.Tensor] = {}

    @cached_property
    def _id_of(self) -> dict[int, int]:
        return {byte: number for number, byte in self._byte_of.items()} | {END: EOS}

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.stack([self._row(ids) for ids in input_ids.tolist()]))

    def _row(self, ids: list[int]) -> torch.Tensor:
        rows, story = [], None
        for number in ids:
            if number == BOS:
                story = b""
            elif number == EOS:
                story = None
            elif story is not None:
                story += bytes([self._byte_of[number]])
            rows.append(self.always(BOS) if story is None else self.after(story))
        return torch.stack(rows)

    def after(self, story: bytes) -> torch.Tensor:
        """The logits after the beginning of a story."""
        if story not in self._known:
            logits = torch.full((NUM_IDS,), IMPOSSIBLE, dtype=torch.float64)
            for byte, probability in next_bytes(self._world, story).items():
                logits[self._id_of[byte]] = torch.tensor(probability, dtype=torch.float64).log()
            self._known[story] = logits.float()
        return self._known[story]

    @staticmethod
    def always(number: int) -> torch.Tensor:
        """The logits of a token that must follow."""
        return torch.full((NUM_IDS,), IMPOSSIBLE).index_fill(0, torch.tensor([number]), 0.0)


def write_stories(path: Path, stories: Iterable[tuple[str, str]]) -> Path:
    """Sources and texts as preprocess.py reads them."""
    lines = (json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n" for source, text in stories)
    path.write_text("".join(lines), "utf-8")
    return path


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer whose tokens are the bytes."""
    save_tokenizer(train_byte_level_bpe(iter(["a"]), vocab_size=NUM_IDS), folder)
    return folder


def make_store(folder: Path, stories: Path, tokenizer: Path, *flags: str) -> PreTrainedTokenizerFast:
    """Blocks of whole stories, all of them held out; the tokenizer of a model that was trained on such blocks."""
    words = ["--data_files", stories, "--tokenizer", tokenizer, "--block_length", BLOCK_LENGTH, "--add_bos"]
    words += ["--packing", "best_fit", "--split", "0,1,0", "--output_dir", folder / "blocks", *flags]
    preprocess([str(word) for word in words])
    origin = read_manifest(folder / "blocks", flag="").origin
    tokenizer_for_model(folder / "blocks", origin, max_length=BLOCK_LENGTH).save_pretrained(folder / "model")
    return PreTrainedTokenizerFast.from_pretrained(folder / "model")
