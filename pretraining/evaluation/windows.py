"""The loss of texts that stand each by itself, whatever their lengths and the batches they go in.

A passage is a document with its control tokens, or a prompt with its continuation; the model sees nothing before it.
One that is longer than the model sees at once goes through in windows, each half a window after the one before. A token
is predicted once, in the first window that has it: all beyond the first window are predicted from half of one or more.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from pretraining.training.data.batch import Batch
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.model.loss import NUM_SUMS, token_losses

SORTED_WINDOWS = 1024  # batches are made of as many at a time, in which windows of like length lie together


@dataclass(frozen=True, slots=True)
class TextWindow:
    """A text of `source`: its ids, and of each the bytes of text that it stands for, int64 of shape [tokens].

    The first `num_given` tokens, 1 or more, are not predicted: nothing is there to predict the first one from.
    """

    source: str
    ids: np.ndarray
    num_bytes: np.ndarray
    num_given: int = 1


def windows_of(passage: TextWindow, *, window_tokens: int) -> Iterator[TextWindow]:
    """The passage as passages of `window_tokens` (2 or more) at most, in which each token is predicted once.

    >>> passage = Passage("", np.arange(10), np.zeros(10))
    >>> [(window.ids.tolist(), window.num_given) for window in windows_of(passage, window_tokens=6)]
    [([0, 1, 2, 3, 4, 5], 1), ([3, 4, 5, 6, 7, 8], 3), ([6, 7, 8, 9], 3)]
    """
    num_done = passage.num_given
    for start in itertools.count(0, window_tokens // 2):
        if num_done >= len(passage.ids):
            return
        part = slice(start, start + window_tokens)
        ids = passage.ids[part]
        if start + len(ids) > num_done:
            yield TextWindow(passage.source, ids, passage.num_bytes[part], num_done - start)
            num_done = start + len(ids)


@torch.no_grad()
def evaluate_passages(
    model: PreTrainedModel, passages: Iterable[TextWindow], *, window_tokens: int, batch_tokens: int
) -> dict[str, np.ndarray]:
    """Sums of losses, right predictions, predictions and bytes of each source: fp64 of shape [4].

    At most `batch_tokens` go through the model at once, padding included, or else one window.
    """
    windows = (window for passage in passages for window in windows_of(passage, window_tokens=window_tokens))
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(NUM_SUMS))
    for batch in _batches(windows, batch_tokens):
        inputs = {name: values.to(model.device) for name, values in _padded(batch).items()}
        # Padding stands behind the tokens, which do not see what comes after them, so no mask is needed.
        output = model(input_ids=inputs["input_ids"], use_cache=False)
        for window, values in zip(batch, _window_sums(output, inputs), strict=True):
            sums[window.source] += values
    return dict(sums)


def _batches(windows: Iterator[TextWindow], batch_tokens: int) -> Iterator[list[TextWindow]]:
    """Windows in batches, the longest of a group first."""
    while group := list(itertools.islice(windows, SORTED_WINDOWS)):
        group.sort(key=lambda window: -len(window.ids))
        while group:
            size = max(1, batch_tokens // len(group[0].ids))
            yield group[:size]
            group = group[size:]


def _padded(windows: list[TextWindow]) -> Batch:
    """The inputs, and at each place the label and the bytes of the token after it: int64 [windows, longest]."""
    shape = (len(windows), max(len(window.ids) for window in windows))
    ids, num_bytes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED_LABEL, np.int64)
    for row, window in enumerate(windows):
        first, end = window.num_given, len(window.ids)
        ids[row, :end] = window.ids
        labels[row, first - 1 : end - 1] = window.ids[first:]
        num_bytes[row, first - 1 : end - 1] = window.num_bytes[first:]
    arrays = {"input_ids": ids, "labels": labels, "num_bytes": num_bytes}
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _window_sums(output: object, inputs: Batch) -> np.ndarray:
    """What `evaluate_passages` sums, of each window: fp64 of shape [windows, 4]."""
    tokens = token_losses(output, inputs["labels"])
    values = [tokens.losses, tokens.is_correct, tokens.is_predicted, inputs["num_bytes"]]
    return torch.stack([value.double().sum(dim=1) for value in values], dim=1).cpu().numpy()
