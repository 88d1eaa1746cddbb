"""How likely a model finds continuations of prompts, its own or any other's, beside what people wrote.

Text as likely as what people wrote has the perplexity of the held-out documents; far less is dull, far more is odd.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pretraining.cli.program import renaming_flag
from pretraining.data.input.find import InputFile
from pretraining.evaluation.held_out import evaluate_files
from pretraining.evaluation.windows import TextWindow, evaluate_passages
from pretraining.training.metrics.evaluation import metrics_of_sums


class Continued(Protocol):
    """A prompt, and the ids of what continues it, without EOS."""

    @property
    def prompt(self) -> str:
        """The prompt."""

    @property
    def tokens(self) -> Sequence[int]:
        """The ids after it."""


def evaluate_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    continuations: Iterable[Continued],
    *,
    batch_tokens: int = 8192,
) -> dict[str, float] | None:
    """Loss, perplexity and accuracy on all tokens of the continuations, each given its prompt and what is before it.

    The probabilities are the model's own: those of temperature 1, of all tokens, without any penalty. None when there
    is no token.
    """
    passages = _passages(tokenizer, continuations)
    positions = model.config.max_position_embeddings
    found = evaluate_passages(model, passages, window_tokens=positions, batch_tokens=batch_tokens)
    return metrics_of_sums(found[""].tolist()) if found else None


def _passages(tokenizer: PreTrainedTokenizerFast, continuations: Iterable[Continued]) -> Iterator[TextWindow]:
    for continuation in continuations:
        prompt_ids = tokenizer(continuation.prompt)["input_ids"]
        ids = np.array([*prompt_ids, *continuation.tokens], np.int64)
        yield TextWindow("", ids, np.zeros_like(ids), num_given=max(1, len(prompt_ids)))


def continuations_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, continuations: Sequence[Continued]
) -> float | None:
    """The model's perplexity on the continuations, None without a token."""
    found = evaluate_continuations(model, tokenizer, continuations)
    return None if found is None else found["perplexity"]


def held_out_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, files: Sequence[InputFile]
) -> float | None:
    """The model's perplexity on the documents of the files of --held_out, None without files.

    Raises:
        UserError: as `evaluate_files` does.
    """
    if not files:
        return None
    with renaming_flag("--held_out"):
        return evaluate_files(model, tokenizer, files).total["perplexity"]


def perplexity_line(continuations: float | None, held_out: float | None) -> str:
    """Both as they are shown."""
    figures = {"continuations": continuations, "held-out": held_out}
    shown = [f"{value:,.2f} on {name}" for name, value in figures.items() if value is not None]
    return f"perplexity     {', '.join(shown) or 'of no token'}"
