"""Memorization: the share of generated text that is copied from training data, and where each text copies most."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.inspect.overlap import VerbatimSpan, find_copied_runs
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.tokenize.token_bytes import text_of
from pretraining.errors import UserError
from pretraining.evaluation.text_statistics import SHOWN_CHARACTERS, CompletionLike
from pretraining.system.cores import usable_cores
from pretraining.system.formatting import shorten

NUM_SHOWN = 5


@dataclass(frozen=True)
class CopiedFigures:
    """The share of tokens copied from training documents in runs of 8 or more, and the longest run of each text.

    A row of `copied_runs` has the number of the text (from 1), the run, and its document's file, line and source. The
    field names are those of the JSON output.
    """

    num_continuations: int
    copied_share: float
    copied_runs: list[dict[str, Any]]

    def lines(self) -> Iterator[str]:
        """The share, then the longest runs."""
        longest = [row["num_tokens"] for row in self.copied_runs]
        most = f"; longest {max(longest):,} tokens, mean of those {fmean(longest):,.1f}" if longest else ""
        texts = f"{len(longest):,} of {self.num_continuations:,} completions have a run of 8 tokens or more"
        yield f"copied         {self.copied_share:.1%} of the tokens; {texts}{most}"
        for row in sorted(self.copied_runs, key=lambda row: -row["num_tokens"])[:NUM_SHOWN]:
            place = f"completion {row['sample']}, in {row['file']}:{row['line']}"
            yield f"  {row['num_tokens']:>4} tokens of {place}: {shorten(row['text'], SHOWN_CHARACTERS)}"


def copied_figures(completions: Sequence[CompletionLike], tracer: BlockProvenance) -> CopiedFigures:
    """Search all blocks of the train split for every completion; shows progress.

    Raises:
        UserError: if the tokens are not those of the blocks' tokenizer, or a shard is missing or damaged.
    """
    _check_tokens(completions, tracer)
    num_bytes = sum(shard.num_bytes for shard in tracer.manifest.splits["train"].shards)
    texts = [completion.tokens for completion in completions]
    with Progress(num_bytes) as progress:
        found = find_copied_runs(tracer, texts, split="train", progress=progress, num_workers=usable_cores())
    num_tokens = sum(map(len, texts))
    return CopiedFigures(
        num_continuations=len(completions),
        copied_share=sum(copied.num_tokens for copied in found) / max(num_tokens, 1),
        copied_runs=[
            {"sample": number, **_row(tokens, copied.longest, tracer)}
            for number, (tokens, copied) in enumerate(zip(texts, found, strict=True), 1)
            if copied.longest is not None
        ],
    )


def _row(tokens: Sequence[int], run: VerbatimSpan, tracer: BlockProvenance) -> dict[str, Any]:
    document = tracer.document(run.document_id)
    return {
        "start": run.start,
        "num_tokens": run.num_tokens,
        "document_id": run.document_id,
        "document_token": run.document_token,
        "file": document.file,
        "line": document.line,
        "source": document.source,
        "text": _text(tokens[run.start : run.start + run.num_tokens], tracer),
    }


def _text(tokens: Sequence[int], tracer: BlockProvenance) -> str:
    return text_of(tracer.token_bytes.join(np.array(tokens, np.int64)).data.tobytes())


def _check_tokens(completions: Sequence[CompletionLike], tracer: BlockProvenance) -> None:
    """Reject ids of another tokenizer than that of the blocks: they would be found nowhere, or anywhere."""
    vocab_size = tracer.manifest.origin.tokenizer.vocab_size
    for number, completion in enumerate(completions, 1):
        is_known = all(0 <= token < vocab_size for token in completion.tokens)
        text = _text(completion.tokens, tracer) if is_known else ""
        if not is_known or not _plain(text).startswith(_plain(completion.text)):
            raise UserError(
                f"--blocks {tracer.folder}: its tokenizer does not give the text of completion {number} from its "
                "tokens; pass the blocks that the model was trained on"
            )


def _plain(text: str) -> str:
    """The text without what decoders differ in: outer spaces and replacement characters."""
    return text.replace("\ufffd", "").strip()
