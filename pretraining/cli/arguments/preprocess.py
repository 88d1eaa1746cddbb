"""The flags of preprocess.py, with their defaults."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.arguments.tokenizer import HUB_ID, SAMPLE_CORPUS, SAMPLE_TOKENIZER
from pretraining.cli.flags import check_all, flag
from pretraining.system.cores import usable_cores

SPLIT_WEIGHTS = re.compile(",".join([r"\s*([0-9]{1,9})\s*"] * 3))
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class PreprocessArguments:
    """Flags of preprocess.py."""

    data_files: list[str] = flag(
        [str(SAMPLE_CORPUS)],
        "JSONL, Parquet or .txt files (.gz, .zst, .xz too), folders, globs, or hf://USER/NAME/CONFIG@REVISION:SPLIT; "
        "NAME=FILES names their source",
    )
    streaming: bool = flag(False, "read files of the Hub as they come, without keeping them")
    text_field: str = flag("text", "field that holds a document's text; a.b is field b of object a")
    source_field: str = flag("source", "field that names a document's source; without it, the file's name")
    split_text_files: bool = flag(False, "blank lines divide a .txt file into documents; otherwise it is one")
    max_document_bytes: int = flag(
        6 << 20,
        "larger lines (rows, text files) are skipped; the reference takes 90 bytes of memory for each of a document",
    )
    max_skipped_fraction: float = flag(0.01, "share of unreadable lines above which no block store is made")
    min_characters: int | None = flag(None, "remove shorter documents")
    max_characters: int | None = flag(None, "remove longer documents")
    exact_duplicates: bool = flag(False, "remove documents whose text was there before (case and spaces ignored)")
    near_duplicates: float | None = flag(None, "remove documents this similar to one before them (Jaccard), as 0.8")
    language_hook: str | None = flag(
        None,
        "package.module:function that returns the language of a text. Its code runs here, also when a recipe names it; "
        "do not change it until the store is finished",
    )
    languages: list[str] | None = flag(None, "keep documents in these languages, as --language_hook names them")
    tokenizer: str = flag(SAMPLE_TOKENIZER, "tokenizer folder or Hub id (its tokenizer.json is used as it stands)")
    tokenizer_backend: Literal["auto", "reference", "fastokens"] = flag(
        "auto", "library that encodes; auto is the fastest that proves to give the ids of the reference, tokenizers"
    )
    add_bos: bool = flag(False, "put BOS before each document; EOS always follows it")
    block_length: int = flag(4096, "tokens in a token block")
    packing: Literal["concat", "best_fit"] = flag(
        "concat", "concat cuts documents at the end of a block; best_fit only those longer than one, and pads"
    )
    split: str = flag("949,50,1", "weights of train, validation and test; whole documents, equal texts together")
    seed: int = flag(42, "decides which documents are validation and test")
    output_dir: Path = flag(Path("blocks"), "block store to make")
    tokens_per_shard: int = flag(
        1 << 27, "tokens of all splits after which their shards end; a killed run goes on from there"
    )
    num_slices: int = flag(
        1, "slices of the input that processes under mpirun share; the bytes depend on it, not on the processes"
    )
    # Two more than cores: some parse and hash while others encode. 31 MB/s on two cores, where two workers make 28.
    num_workers: int = flag(usable_cores() + 2, "threads that encode in this process")
    push_to_hub: str | None = flag(None, "push the block store to this data set of the Hub (USER/NAME)")
    hub_private: bool = flag(True, "make that data set private; false publishes it")
    license: str | None = flag(None, "licence of the sources for the data set card, as cc-by-4.0")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        message = f"--split {self.split}: is not three weights, not all 0; use e.g. 949,50,1"
        check_all({message: split_weights_of(self.split) is not None, **self._cleaning_checks(), **self._hub_checks()})

    def _cleaning_checks(self) -> dict[str, bool]:
        longest = self.max_characters
        return {
            f"--max_characters {longest}: is less than --min_characters {self.min_characters}; exchange them": (
                longest is None or longest >= (self.min_characters or 1)
            ),
            "--language_hook, --languages: belong together; give both, as my_module:language_of and en": (
                (self.language_hook is None) == (self.languages is None)
            ),
        }

    def _hub_checks(self) -> dict[str, bool]:
        return {
            f"--push_to_hub {self.push_to_hub}: is no data set of the Hub; give it as USER/NAME": (
                self.push_to_hub is None or bool(HUB_ID.fullmatch(self.push_to_hub))
            ),
            f"--license {self.license}: give the Hub's word for it, such as cc-by-4.0 or other": (
                self.license is None or bool(LICENSE.fullmatch(self.license))
            ),
        }

    @property
    def split_weights(self) -> tuple[int, int, int]:
        """Weights of train, validation and test."""
        weights = split_weights_of(self.split)
        assert weights is not None
        return weights


def split_weights_of(text: str) -> tuple[int, int, int] | None:
    """The three weights of --split; None when it has not three, or all are 0."""
    match = SPLIT_WEIGHTS.fullmatch(text)
    if match is None:
        return None
    train, validation, test = (int(word) for word in match.groups())
    return (train, validation, test) if train + validation + test > 0 else None
