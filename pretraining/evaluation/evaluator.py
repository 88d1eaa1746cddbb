"""What generate.py --stats reports of its texts, beside held-out documents and the blocks of the training."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.errors import UserError
from pretraining.evaluation.memorization import copied_figures
from pretraining.evaluation.perplexity import continuations_perplexity, held_out_perplexity, perplexity_line
from pretraining.evaluation.report import Comparisons
from pretraining.evaluation.text_statistics import text_statistics
from pretraining.generation.generate import Completion
from pretraining.generation.load_model import gives_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleEvaluator:
    """A model that says how likely texts are, what it said of held-out documents, and the blocks of its training."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    held_out_perplexity: float | None
    blocks: BlockProvenance | None

    def say(self, continuations: Sequence[Completion]) -> None:
        """Log what the texts are like: repetitive, varied, long, ended, likely, copied."""
        for line in self._lines(continuations):
            logger.info(line)

    def _lines(self, continuations: Sequence[Completion]) -> Iterator[str]:
        yield from text_statistics(continuations).lines()
        perplexity = continuations_perplexity(self.model, self.tokenizer, continuations)
        yield perplexity_line(perplexity, self.held_out_perplexity)
        if self.blocks is not None:
            yield from copied_figures(continuations, self.blocks).lines()


def make_evaluator(
    comparisons: Comparisons, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> SampleEvaluator:
    """Read the held-out documents, and check that the blocks have the ids of this tokenizer.

    To be done before a text is written, so that a mistake costs none.

    Raises:
        UserError: as `held_out_perplexity` does, and when the blocks are those of another tokenizer.
    """
    if comparisons.blocks is not None:
        check_tokenizer(comparisons.blocks, tokenizer)
    if comparisons.held_out:
        logger.info("reading the held-out documents")
    perplexity = held_out_perplexity(model, tokenizer, comparisons.held_out)
    return SampleEvaluator(model, tokenizer, perplexity, comparisons.blocks)


def check_tokenizer(blocks: BlockProvenance, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse blocks whose canary text has other ids here: texts would be found nowhere in them, or anywhere."""
    made_by = blocks.manifest.origin.tokenizer
    if not gives_ids(tokenizer, made_by.canary_text, made_by.canary_ids):
        raise UserError(
            f"--blocks {blocks.folder}: were made with another tokenizer ({made_by.name}); give the blocks that the "
            "model was trained on"
        )
