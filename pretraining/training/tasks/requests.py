"""Encode the texts of tasks as lm-evaluation-harness does, so that its scores and those of this suite are comparable.

A context and its continuation are encoded together and split at the length of the encoded context; white space at the
end of a context belongs to the continuation (`_encode_pair` of lm_eval 0.4.13, api/model.py). BOS precedes a text if
the model's tokenizer adds it. After an empty context, BOS or else EOS is the token that the first one is predicted
from.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError, shortened

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A text to score: int32 ids of shape [tokens]; the first `num_context_tokens`, at least 1, are not predicted."""

    ids: np.ndarray
    num_context_tokens: int

    @property
    def num_inputs(self) -> int:
        """The tokens that the model sees: all but the last, from which nothing is predicted."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class TaskRequests:
    """The requests of a task, and how its metrics follow from their results.

    `metrics` takes log-likelihoods in nats, fp64 of shape [requests], and whether greedy decoding gives the
    continuation, bool of shape [requests].
    """

    name: str
    requests: list[Request]
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]


def encode_texts(
    texts: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, *, num_positions: int, place: str
) -> list[Request]:
    """The requests of pairs of context and continuation; long ones lose the beginning of their context.

    Raises:
        UserError: if a continuation has no token, or more than the model has positions; `place` names the task.
    """
    requests, num_cut = [], 0
    for context, continuation in texts:
        ids, num_context_tokens = _encode_pair(context, continuation, tokenizer)
        num_predicted = len(ids) - num_context_tokens
        if not 0 < num_predicted <= num_positions:
            few = "no token after its context" if num_predicted <= 0 else f"{num_predicted:,} tokens"
            remedy = "separate it by white space" if num_predicted <= 0 else f"use {num_positions:,} or fewer"
            raise UserError(f"{place}: {shortened(continuation)!r} has {few}; {remedy}")
        kept = ids[-num_positions - 1 :]
        num_cut += len(kept) < len(ids)
        requests.append(Request(np.array(kept, np.int32), len(kept) - num_predicted))
    if num_cut:
        logger.warning(
            "%s: %s of %s texts are longer than the model's %s positions, and lose the beginning of their context",
            place,
            f"{num_cut:,}",
            f"{len(requests):,}",
            f"{num_positions:,}",
        )
    return requests


def _encode_pair(context: str, continuation: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """The ids of both, and how many of them are context."""
    kept = context.rstrip()
    ids, num_context_tokens = tokenizer(context + continuation)["input_ids"], len(tokenizer(kept)["input_ids"])
    if num_context_tokens:
        return ids, num_context_tokens
    return [tokenizer.eos_token_id, *ids], 1


@dataclass(frozen=True)
class BatchShapes:
    """The shapes of batches of requests.

    A batch has at most `max_tokens`, padding included, or else one request. Its length is a multiple of `multiple`, but
    at most `num_positions`, then rounded up to a multiple of `num_parts` (of sequence parallelism).
    """

    max_tokens: int
    num_positions: int
    multiple: int = 1
    num_parts: int = 1

    def width(self, request: Request) -> int:
        """The length of a batch whose longest request this is."""
        padded = min(_round_up(request.num_inputs, self.multiple), self.num_positions)
        return _round_up(padded, self.num_parts)

    def batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """The numbers of the requests in each batch, the longest first.

        They depend on the requests and these shapes only, not on the number of processes.
        """
        numbers = sorted(range(len(requests)), key=lambda number: -requests[number].num_inputs)
        while numbers:
            size = max(1, self.max_tokens // self.width(requests[numbers[0]]))
            yield numbers[:size]
            numbers = numbers[size:]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
