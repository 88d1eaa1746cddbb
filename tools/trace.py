"""Find the documents of a block's tokens, or the blocks that contain a text.

    python3 -m tools.trace blocks --block 1234                   # the documents in block 1234 of train
    python3 -m tools.trace blocks --block 1234 --position 77     # the document of one token, with all of its text
    python3 -m tools.trace blocks --text "the river rose"        # every block with this text or a part of it

A row is a piece, the tokens of one document in one block; its text is shown from `position` on. Blocks, tokens and
positions count from 0, lines from 1. A text is found exactly, also across tokens and blocks; if it is in no block, the
exit code is 1.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import exit_process, run_program
from pretraining.cli.progress import Progress
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.data.encode.splits import SPLITS, Split
from pretraining.data.inspect.provenance import BlockProvenance, DocumentLocation, Piece, has_ids, read_source
from pretraining.data.inspect.search import find_text
from pretraining.data.tokenize.token_bytes import text_of
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from pretraining.system.cores import usable_cores
from pretraining.system.escapes import escape, escape_on_terminal
from pretraining.system.formatting import shorten

logger = logging.getLogger("pretraining.trace")

NOT_FOUND_EXIT_CODE = 1
SHOWN_TOKENS = 48
SHOWN_CHARACTERS = 40
COLUMNS = "{:<10} {:>7} {:>5} {:>9} {:>8} {:>16} {:<6} {:>8}  {:<8} {:<26} {}"
HEADINGS = ["split", "block", "piece", "tokens", "position", "of document", "part", "document", "source", "file:line"]


@dataclass(frozen=True)
class TraceArguments:
    """Flags of tools.trace."""

    dataset: Path = flag(Path("blocks"), "block store; may come first, without --dataset")
    block: int | None = flag(None, "number of a block, as in training")
    position: int | None = flag(None, "number of a token in --block: show its document with all of its text")
    text: str = flag("", "find the blocks that contain this text", is_text=True)
    split: Split | None = flag(None, "split to search; by default train for --block, and all three for --text")
    json: bool = flag(False, "print one JSON object per line instead of a table")
    num_workers: int = flag(usable_cores(), "threads of --text, 200 MB of memory each")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        checks = {
            "--block, --text: use exactly one of the two": ((self.block is None) == bool(self.text)),
            f"--position {self.position}: is the number of a token in a block; add --block": (
                self.position is None or self.block is not None
            ),
        }
        check_all(checks)


def main(argv: Sequence[str]) -> None:
    """Trace a block or a token, or search a text."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the search
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Tracing", TraceArguments)], argv, first=["dataset"])
    rows = Rows(BlockProvenance(arguments.dataset, flag="--dataset"), as_json=arguments.json)
    if arguments.text:
        splits = SPLITS if arguments.split is None else (arguments.split,)
        rows.show_search(splits, arguments.text, num_workers=arguments.num_workers)
    elif arguments.position is None:
        rows.show_block(arguments.split or "train", arguments.block)
    else:
        rows.show_token(arguments.split or "train", arguments.block, arguments.position)


class Rows:
    """Prints pieces of `tracer` as rows of a table, or as JSON objects."""

    def __init__(self, tracer: BlockProvenance, *, as_json: bool) -> None:
        self._tracer = tracer
        self._as_json = as_json
        self._num_rows = 0

    def show_block(self, split: Split, block: int) -> None:
        """Show each piece of a block."""
        pieces, ids = self._tracer.pieces(split, block), self._tracer.token_ids(split, block)
        for piece in pieces:
            self._show(piece, piece.start, self._text_from(ids, piece, piece.start))

    def show_token(self, split: Split, block: int, position: int) -> None:
        """Show the piece of a token, and its document's text from the input."""
        piece = self._tracer.piece_at(split, block, position)
        ids = self._tracer.token_ids(split, block)
        document_text, text = source_text(self._tracer, piece, ids), self._text_from(ids, piece, position)
        self._show(piece, position, text, **({"document_text": document_text} if self._as_json else {}))
        if document_text is not None and not self._as_json:
            document = self._tracer.document(piece.document_id)
            say(f"\ndocument {document.document_id}, from {document.file}:{document.line}:\n\n{document_text}")

    def show_search(self, splits: Sequence[Split], text: str, *, num_workers: int) -> None:
        """Show each piece with the text or a part of it, as soon as it is found."""
        contents = [self._tracer.manifest.splits[split] for split in splits]
        with Progress(sum(shard.num_bytes for split in contents for shard in split.shards)) as progress:
            for hit in find_text(self._tracer, splits, text, progress=progress, num_workers=num_workers):
                self._show(hit.piece, hit.position, hit.excerpt)
        if self._num_rows == 0:
            num_blocks = sum(split.num_blocks for split in contents)
            logger.info("the text is in none of the %s blocks of %s", f"{num_blocks:,}", ", ".join(splits))
            exit_process(NOT_FOUND_EXIT_CODE)

    def _text_from(self, ids: np.ndarray, piece: Piece, position: int) -> str:
        """The text of a piece from `position` on, as much as a row shows; `ids` are those of its block."""
        end = min(position + SHOWN_TOKENS, piece.start + piece.num_tokens)
        return text_of(self._tracer.token_bytes.join(ids[position:end]).data.tobytes())

    def _show(self, piece: Piece, position: int, text: str, **more: str | None) -> None:
        """Print one row: a piece, a token in it, and the text from there on."""
        document = self._tracer.document(piece.document_id)
        part = part_of(piece, document)
        self._num_rows += 1
        if self._as_json:
            row = {"piece": dataclasses.asdict(piece), "document": dataclasses.asdict(document)}
            say(json.dumps({"position": position, "text": text, "part": part, **row, **more}, ensure_ascii=False))
            return
        if self._num_rows == 1:
            say(COLUMNS.format(*HEADINGS, "text"))
        first, before, num_tokens = piece.start, piece.num_tokens_before, piece.num_tokens
        tokens, of_document = f"{first}-{first + num_tokens - 1}", f"{before}-{before + num_tokens - 1}"
        cells = (piece.split, piece.block, piece.number, tokens, position, f"{of_document} of {document.num_tokens}")
        place = (document.document_id, escape(document.source), escape(f"{document.file}:{document.line}"))
        say(COLUMNS.format(*cells, part, *place, shorten(text, SHOWN_CHARACTERS)))


def source_text(tracer: BlockProvenance, piece: Piece, ids: np.ndarray) -> str | None:
    """The text of a piece's document from its file; None, and a warning, if the file has changed."""
    origin = tracer.manifest.origin
    document = tracer.document(piece.document_id)
    try:
        source = read_source(document, origin)
    except UserError as error:
        logger.warning("%s", error)
        return None
    add_bos = origin.token_rules.bos_token_id is not None
    tokenizer = load_document_tokenizer(str(tracer.folder / "tokenizer"), add_bos=add_bos, flag="--dataset")
    if has_ids(source, tokenizer, piece=piece, block_ids=ids, num_document_tokens=document.num_tokens):
        return source.text if source.ids is None else tokenizer.decode(source.ids.tolist())
    logger.warning("%s:%s: has changed, its text does not have the ids of the block", document.file, document.line)
    return None


def part_of(piece: Piece, document: DocumentLocation) -> str:
    """Which part of its document a piece is: whole, begin, middle or end."""
    ends = piece.num_tokens_before + piece.num_tokens == document.num_tokens
    if piece.num_tokens_before == 0:
        return "whole" if ends else "begin"
    return "end" if ends else "middle"


def say(line: str) -> None:
    """Print a line at once, above the progress bar."""
    tqdm.write(escape_on_terminal(line, sys.stdout))
    sys.stdout.flush()


if __name__ == "__main__":
    run_program(main)
