"""What generate.py --stats says of the texts that it wrote."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.errors import under_flag
from pretraining.corpus.inputs import InputFile, find_inputs
from pretraining.corpus.provenance import BlockTracer
from pretraining.judging.copied_text import copied_figures
from pretraining.judging.likelihood import perplexities, perplexity_line
from pretraining.judging.statistics import text_statistics
from pretraining.sampling.generation import Continuation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparisons:
    """What the texts are compared with: held-out documents, and the blocks of the training."""

    held_out: Sequence[InputFile]
    blocks: BlockTracer | None


def open_comparisons(held_out: Sequence[str] | None, blocks: Path | None) -> Comparisons:
    """Find both before a text is written, so that a mistake is told at once.

    Raises:
        UserError: when a file cannot be read, or --blocks is no block store.
    """
    with under_flag("--held_out"):
        files = find_inputs(held_out or [])
    return Comparisons(files, None if blocks is None else BlockTracer(blocks, flag="--blocks"))


def say_statistics(
    continuations: Sequence[Continuation],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    comparisons: Comparisons,
) -> None:
    """Log what the texts are like: repetitive, varied, long, ended, likely, copied."""
    for line in _lines(continuations, model, tokenizer, comparisons):
        logger.info(line)


def _lines(
    continuations: Sequence[Continuation],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    comparisons: Comparisons,
) -> Iterator[str]:
    yield from text_statistics(continuations).lines()
    yield perplexity_line(perplexities(model, tokenizer, continuations, comparisons.held_out))
    if comparisons.blocks is not None:
        yield from copied_figures(continuations, comparisons.blocks).lines()
