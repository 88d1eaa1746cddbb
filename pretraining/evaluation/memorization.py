"""How much of generated text stands in the training data, and the document that each text has the longest run from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.inspect.overlap import VerbatimSpan, find_copied_runs
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.tokenize.token_bytes import TokenBytes, text_of
from pretraining.errors import UserError
from pretraining.system.cores import usable_cores

NUM_WORKERS = usable_cores()
NUM_SHOWN, SHOWN_CHARACTERS = 5, 100


class Written(Protocol):
    """A text and the ids of its tokens."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def tokens(self) -> Sequence[int]:
        """Its ids."""


@dataclass(frozen=True)
class CopiedFigures:
    """What share of all tokens stands in training documents in runs of 8 or more, and the longest run of each text.

    A row of `copied_runs` has the number of the text (from 1), the run, and its document's file, line and source.
    """

    num_continuations: int
    copied_share: float
    copied_runs: list[dict[str, Any]]

    def lines(self, num_shown: int = NUM_SHOWN) -> Iterator[str]:
        """How much there is, then the longest runs."""
        longest = [row["num_tokens"] for row in self.copied_runs]
        most = f"; longest {max(longest):,} tokens, mean of those {fmean(longest):,.1f}" if longest else ""
        texts = f"{len(longest):,} of {self.num_continuations:,} continuations have a run of 8 tokens or more"
        yield f"copied         {self.copied_share:.1%} of the tokens; {texts}{most}"
        for row in sorted(self.copied_runs, key=lambda row: -row["num_tokens"])[:num_shown]:
            text = " ".join(row["text"].split())
            shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
            place = f"continuation {row['sample']}, in {row['file']}:{row['line']}"
            yield f"  {row['num_tokens']:>4} tokens of {place}: {shown}"


def copied_figures(
    continuations: Sequence[Written], tracer: BlockProvenance, *, num_workers: int = NUM_WORKERS
) -> CopiedFigures:
    """Look for every continuation in all blocks of the train split; shows how far it is.

    Raises:
        UserError: when the tokens are not those of the blocks' tokenizer, or a shard is missing or damaged.
    """
    token_bytes = TokenBytes(tracer.folder / "tokenizer")
    _check_tokens(continuations, token_bytes, tracer)
    num_bytes = sum(shard.num_bytes for shard in tracer.manifest.splits["train"].shards)
    texts = [continuation.tokens for continuation in continuations]
    with Progress(num_bytes) as progress:
        found = find_copied_runs(tracer, texts, split="train", progress=progress, num_workers=num_workers)
    num_tokens = sum(map(len, texts))
    return CopiedFigures(
        num_continuations=len(continuations),
        copied_share=sum(copied.num_tokens for copied in found) / max(num_tokens, 1),
        copied_runs=[
            {"sample": number, **_row(tokens, copied.longest, tracer, token_bytes)}
            for number, (tokens, copied) in enumerate(zip(texts, found, strict=True), 1)
            if copied.longest is not None
        ],
    )


def _row(tokens: Sequence[int], run: VerbatimSpan, tracer: BlockProvenance, token_bytes: TokenBytes) -> dict[str, Any]:
    document = tracer.document(run.document_id)
    text = text_of(token_bytes.join(np.array(tokens[run.start : run.start + run.num_tokens])).data.tobytes())
    return {
        "start": run.start,
        "num_tokens": run.num_tokens,
        "document_id": run.document_id,
        "document_token": run.document_token,
        "file": document.file,
        "line": document.line,
        "source": document.source,
        "text": text,
    }


def _check_tokens(continuations: Sequence[Written], token_bytes: TokenBytes, tracer: BlockProvenance) -> None:
    """Refuse ids of another tokenizer than that of the blocks: they would be found nowhere, or anywhere."""
    vocab_size = tracer.manifest.origin.tokenizer.vocab_size
    for number, written in enumerate(continuations, 1):
        is_known = all(0 <= token < vocab_size for token in written.tokens)
        text = text_of(token_bytes.join(np.array(written.tokens, np.int64)).data.tobytes()) if is_known else ""
        if not is_known or not _plain(text).startswith(_plain(written.text)):
            raise UserError(
                f"--blocks {tracer.folder}: its tokenizer does not give the text of continuation {number} from its "
                "tokens; give the blocks that the model was trained on"
            )


def _plain(text: str) -> str:
    """Without what decoders differ in: spaces at the ends, and what stands for half a character."""
    return text.replace("\ufffd", "").strip()
