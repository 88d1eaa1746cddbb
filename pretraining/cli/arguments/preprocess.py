"""The flags of preprocess.py and train_tokenizer.py, with their defaults."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.flags import check_all, flag
from pretraining.system.cores import usable_cores

SAMPLE_CORPUS = Path("data/sample/news.jsonl")
SAMPLE_TOKENIZER = "data/sample/tokenizer"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # of a dataset; never a path such as ../..
SPLIT_WEIGHTS = re.compile(",".join([r"\s*([0-9]{1,9})\s*"] * 3))
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class PreprocessArguments:
    """Flags of preprocess.py."""

    data_files: list[str] = flag(
        [str(SAMPLE_CORPUS)],
        "JSONL, Parquet or .txt files (.gz, .zst, .xz, .bz2 and .zip too), folders, globs, "
        "hf://USER/NAME/CONFIG@REVISION:SPLIT, or .bin files of token ids; NAME=FILES names their source",
    )
    streaming: bool = flag(False, "read files of the Hub as a stream, without keeping them")
    text_field: str = flag("text", "field with the text of a document; a.b is field b of object a")
    source_field: str = flag(
        "source", "field with the source of a document; documents without it have the name of their file"
    )
    split_text_files: bool = flag(
        False, "split .txt files into documents at blank lines; otherwise a file is one document"
    )
    max_document_bytes: int = flag(
        6 << 20, "skip larger lines (rows, text files); the reference encoder takes 90 bytes of memory per byte"
    )
    max_skipped_fraction: float = flag(0.01, "abort above this share of unreadable lines")
    min_characters: int | None = flag(None, "drop shorter documents")
    max_characters: int | None = flag(None, "drop longer documents")
    exact_duplicates: bool = flag(False, "drop exact duplicates (ignoring case and spaces)")
    near_duplicates: float | None = flag(None, "drop near-duplicates above this Jaccard similarity (e.g. 0.8)")
    language_hook: str | None = flag(
        None,
        "package.module:function that returns the language of a text; its code is executed, even if a recipe names it, "
        "and must not change until the store is finished",
    )
    languages: list[str] | None = flag(None, "keep only documents in these languages, as returned by --language_hook")
    tokenizer: str = flag(
        SAMPLE_TOKENIZER,
        "tokenizer folder or Hub id; tokenizer.json is used unchanged, vocab.json and tokenizer.model are converted",
    )
    tokenizer_backend: Literal["auto", "reference", "fastokens", "compiled"] = flag(
        "auto", "what encodes; auto: the fastest for this input with the same ids as the reference, tokenizers"
    )
    add_bos: bool = flag(False, "put BOS before each document; EOS always follows")
    block_length: int = flag(4096, "tokens per block")
    packing: Literal["concat", "best_fit"] = flag(
        "concat",
        "concat: documents continue in the next block; best_fit: only those longer than a block do, with padding",
    )
    split: str = flag("949,50,1", "weights of train, validation and test; identical texts share a split")
    seed: int = flag(42, "seed of the split")
    output_dir: Path = flag(Path("blocks"), "block store to write")
    tokens_per_shard: int = flag(1 << 27, "tokens per shard; also the resume granularity")
    num_slices: int = flag(
        1,
        "parts of the input, which several processes write at once; above 4 cores use one per core; the bytes depend "
        "on it, not on the processes",
    )
    # Two more than cores: some parse and hash while others encode. With the compiled encoder two cores need no more.
    num_workers: int = flag(
        usable_cores() + 2, "threads that encode; large slices share them in processes of two or more"
    )
    push_to_hub: str | None = flag(None, "push the block store to this dataset of the Hub (USER/NAME)")
    hub_private: bool = flag(True, "create that dataset as private; false publishes it")
    license: str | None = flag(None, "license of the sources for the dataset card, e.g. cc-by-4.0")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        message = f"--split {self.split}: is not three weights, not all 0; use e.g. 949,50,1"
        check_all({message: split_weights_of(self.split) is not None, **self._cleaning_checks(), **self._hub_checks()})

    def _cleaning_checks(self) -> dict[str, bool]:
        longest = self.max_characters
        return {
            f"--max_characters {longest}: is less than --min_characters {self.min_characters}; swap them": (
                longest is None or longest >= (self.min_characters or 1)
            ),
            "--language_hook, --languages: need each other; pass both, e.g. my_module:language_of and en": (
                (self.language_hook is None) == (self.languages is None)
            ),
        }

    def _hub_checks(self) -> dict[str, bool]:
        return {
            f"--push_to_hub {self.push_to_hub}: is not a dataset of the Hub; pass USER/NAME": (
                self.push_to_hub is None or bool(HUB_ID.fullmatch(self.push_to_hub))
            ),
            f"--license {self.license}: is not a license of the Hub; use e.g. cc-by-4.0 or other": (
                self.license is None or bool(LICENSE.fullmatch(self.license))
            ),
        }

    @property
    def split_weights(self) -> tuple[int, int, int]:
        """Weights of train, validation and test."""
        weights = split_weights_of(self.split)
        assert weights is not None
        return weights


@dataclass(frozen=True)
class TokenizerArguments:
    """Flags of train_tokenizer.py."""

    data_files: list[str] = flag(
        [str(SAMPLE_CORPUS)], "JSONL, Parquet or .txt files (.gz, .zst, .xz, .bz2 and .zip too), folders, globs"
    )
    text_field: str = flag("text", "field with the text of a document; a.b is field b of object a")
    max_document_bytes: int = flag(6 << 20, "skip larger lines")
    vocab_size: int = flag(32000, "tokens in the vocabulary, including special tokens")
    output_dir: Path = flag(Path("tokenizer"), "tokenizer folder to write")


def split_weights_of(text: str) -> tuple[int, int, int] | None:
    """The three weights of --split; None unless there are three and one is above 0."""
    match = SPLIT_WEIGHTS.fullmatch(text)
    if match is None:
        return None
    train, validation, test = (int(word) for word in match.groups())
    return (train, validation, test) if train + validation + test > 0 else None
