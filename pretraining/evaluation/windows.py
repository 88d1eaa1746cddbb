"""The loss of independent texts of any lengths, whatever batches they are evaluated in.

A text is a document with its control tokens, or a prompt with its completion; the model sees nothing before it. A text
longer than the context is scored in sliding windows with 50 % overlap. Each token is predicted once, in the first
window that contains it: after the first window, every token is predicted from half a window or more.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pretraining.evaluation.text_statistics import CompletionLike
from pretraining.generation.static_shapes import length_multiple, round_up
from pretraining.training.data.batch import Batch
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.metrics.evaluation import metrics_of_sums
from pretraining.training.model.loss import NUM_SUMS, token_losses

BATCH_TOKENS = 8192  # per forward pass, where nobody sets another number
NUM_SORTED = 1024  # windows that are sorted by length before they are batched


@dataclass(frozen=True, slots=True)
class TextWindow:
    """A text of `source`: ids and the bytes of text that each stands for, int64 of shape [tokens].

    The first `num_context_tokens`, at least 1, are not predicted.
    """

    source: str
    ids: np.ndarray
    num_bytes: np.ndarray
    num_context_tokens: int = 1


def split_into_windows(text: TextWindow, *, window_tokens: int) -> Iterator[TextWindow]:
    """Windows of at most `window_tokens` (at least 2), in which each token is predicted once.

    >>> text = TextWindow("", np.arange(10), np.zeros(10))
    >>> [(one.ids.tolist(), one.num_context_tokens) for one in split_into_windows(text, window_tokens=6)]
    [([0, 1, 2, 3, 4, 5], 1), ([3, 4, 5, 6, 7, 8], 3), ([6, 7, 8, 9], 3)]
    """
    num_done = text.num_context_tokens
    for start in itertools.count(0, window_tokens // 2):
        if num_done >= len(text.ids):
            return
        span = slice(start, start + window_tokens)
        ids = text.ids[span]
        if start + len(ids) > num_done:
            yield TextWindow(text.source, ids, text.num_bytes[span], num_done - start)
            num_done = start + len(ids)


@torch.no_grad()
def evaluate_texts(
    model: PreTrainedModel,
    texts: Iterable[TextWindow],
    *,
    window_tokens: int,
    batch_tokens: int,
    multiple: int | None = None,
) -> dict[str, np.ndarray]:
    """Sums of losses, correct predictions, predictions and bytes by source: fp64 of shape [4].

    A batch has at most `batch_tokens`, padding included, or else one window. With a `multiple` above 1 its length is
    padded to a multiple, and its rows to as many as `batch_tokens` allow, so that few shapes occur; the default is for
    the device of the model.
    """
    shapes = _BatchShapes(window_tokens, batch_tokens, multiple or length_multiple(model.device))
    windows = (window for text in texts for window in split_into_windows(text, window_tokens=window_tokens))
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(NUM_SUMS))
    for batch in _batches(windows, shapes):
        inputs = {name: values.to(model.device) for name, values in _pad(batch, shapes.of(batch)).items()}
        # Padding is on the right, which causal attention ignores, so no mask is needed.
        output = model(input_ids=inputs["input_ids"], use_cache=False)
        for window, values in zip(batch, _window_sums(output, inputs), strict=False):  # not those of the padding
            sums[window.source] += values
    return dict(sums)


def evaluate_completions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, completions: Iterable[CompletionLike]
) -> dict[str, float] | None:
    """Loss, perplexity and accuracy on all tokens of the completions, given their prompts; None without a token.

    The probabilities are the model's own, at temperature 1 and without filters or penalties.
    """
    positions = model.config.max_position_embeddings
    texts = (_completion_text(tokenizer, completion) for completion in completions)
    found = evaluate_texts(model, texts, window_tokens=positions, batch_tokens=BATCH_TOKENS)
    return metrics_of_sums(found[""].tolist()) if found else None


def _completion_text(tokenizer: PreTrainedTokenizerFast, completion: CompletionLike) -> TextWindow:
    prompt_ids = tokenizer(completion.prompt)["input_ids"]
    ids = np.array([*prompt_ids, *completion.tokens], np.int64)
    return TextWindow("", ids, np.zeros_like(ids), num_context_tokens=max(1, len(prompt_ids)))


@dataclass(frozen=True)
class _BatchShapes:
    """The shapes of batches."""

    window_tokens: int
    batch_tokens: int
    multiple: int

    def width(self, window: TextWindow) -> int:
        """The length of a batch whose longest window this is; with padding at most that of a whole window."""
        return min(round_up(len(window.ids), self.multiple), self.window_tokens)

    def max_rows(self, longest: TextWindow) -> int:
        return max(1, self.batch_tokens // self.width(longest))

    def of(self, batch: list[TextWindow]) -> tuple[int, int]:
        """Rows and length of a batch, the longest window first."""
        return len(batch) if self.multiple == 1 else self.max_rows(batch[0]), self.width(batch[0])


def _batches(windows: Iterator[TextWindow], shapes: _BatchShapes) -> Iterator[list[TextWindow]]:
    """Windows of similar lengths in batches, the longest of a group first."""
    while group := list(itertools.islice(windows, NUM_SORTED)):
        group.sort(key=lambda window: -len(window.ids))
        while group:
            size = shapes.max_rows(group[0])
            yield group[:size]
            group = group[size:]


def _pad(windows: list[TextWindow], shape: tuple[int, int]) -> Batch:
    """Inputs, and at each position the label and bytes of the next token: int64 [rows, length]."""
    ids, num_bytes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED_LABEL, np.int64)
    for row, window in enumerate(windows):
        first, end = window.num_context_tokens, len(window.ids)
        ids[row, :end] = window.ids
        labels[row, first - 1 : end - 1] = window.ids[first:]
        num_bytes[row, first - 1 : end - 1] = window.num_bytes[first:]
    arrays = {"input_ids": ids, "labels": labels, "num_bytes": num_bytes}
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _window_sums(output: object, inputs: Batch) -> np.ndarray:
    """The sums of `evaluate_texts` by window: fp64 of shape [windows, 4]."""
    tokens = token_losses(output, inputs["labels"])
    values = [tokens.losses, tokens.is_correct, tokens.is_predicted, inputs["num_bytes"]]
    return torch.stack([value.double().sum(dim=1) for value in values], dim=1).cpu().numpy()
