"""Continuous batching: sequences grow side by side, and a finished one frees its slot for the next request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.decoder import LlamaDecoder
from pretraining.generation.sampling import Penalties, log_probabilities, random_numbers, sample_tokens

FREE_SHARE = 8  # prefill when an eighth of the slots is free: one prompt takes as long as a token of all slots


@dataclass(frozen=True)
class Request:
    """One completion to generate, with its place in the order of all completions."""

    prompt: str
    ids: list[int]
    prompt_number: int
    sample_number: int

    @property
    def key(self) -> tuple[int, int]:
        """Prompt number and sample number."""
        return self.prompt_number, self.sample_number


@dataclass
class ActiveSequence:
    """A growing completion; `ids` include the EOS that ended it, `random_numbers` has one number per new token."""

    request: Request
    random_numbers: list[float]
    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    finish_reason: str = ""


FinishReason = Callable[[ActiveSequence], str]  # "" while the sequence is unfinished


def generate_batched(
    decoder: LlamaDecoder, requests: Sequence[Request], finish_reason: FinishReason, arguments: GenerateArguments
) -> Iterator[ActiveSequence]:
    """Yield the sequence of each request as soon as it ends; `finish_reason` is called after each of its tokens."""
    slots = _Slots(decoder, arguments)
    waiting = list(reversed(requests))
    while waiting or slots.sequences:
        num_free = decoder.num_rows - len(slots.sequences)
        if waiting and (not slots.sequences or num_free * FREE_SHARE >= decoder.num_rows):
            slots.prefill([waiting.pop() for _ in range(min(num_free, len(waiting)))])
        slots.add_tokens()
        for sequence in slots.sequences:
            sequence.finish_reason = finish_reason(sequence)
        yield from slots.remove_finished()
        slots.advance()


class _Slots:
    """The sequences in the first rows of a decoder, and the logits of their next tokens."""

    def __init__(self, decoder: LlamaDecoder, arguments: GenerateArguments) -> None:
        self.sequences: list[ActiveSequence] = []
        self._decoder = decoder
        self._arguments = arguments
        self._penalties = Penalties(arguments, decoder)
        self._logits = torch.empty((0, decoder.vocab_size), device=decoder.device)

    def prefill(self, requests: Sequence[Request]) -> None:
        """Compute the prompts of more requests."""
        first, flags = len(self.sequences), self._arguments
        logits = self._decoder.prefill([request.ids for request in requests], first_row=first)
        self._logits = torch.cat((self._logits, logits))
        for row, request in enumerate(requests, start=first):
            self._penalties.reset(row, request.ids)
            numbers = random_numbers(flags.seed, *request.key, count=flags.max_new_tokens)
            self.sequences.append(ActiveSequence(request, numbers))

    def add_tokens(self) -> None:
        """Sample the next token of each sequence."""
        numbers = [sequence.random_numbers[len(sequence.ids)] for sequence in self.sequences]
        tokens = sample_tokens(self._penalties.apply(self._logits), numbers, self._arguments)
        self._penalties.add(tokens)
        added = log_probabilities(self._logits, tokens).tolist()
        for sequence, token, log_probability in zip(self.sequences, tokens.tolist(), added, strict=True):
            sequence.ids.append(token)
            sequence.log_probability += log_probability

    def remove_finished(self) -> list[ActiveSequence]:
        """Remove the finished sequences; the last sequence moves into each gap."""
        finished = []
        for row in reversed(range(len(self.sequences))):
            if self.sequences[row].finish_reason:
                finished.append(self.sequences[row])
                last = self.sequences.pop()
                if row < len(self.sequences):
                    self.sequences[row] = last
                    num_positions = len(last.request.ids) + len(last.ids)
                    self._decoder.copy_row(len(self.sequences), row, num_positions=num_positions)
                    self._penalties.move(len(self.sequences), row)
        return finished[::-1]

    def advance(self) -> None:
        """Compute the logits after the last token of each sequence."""
        positions = [len(sequence.request.ids) + len(sequence.ids) - 1 for sequence in self.sequences]
        ids = [sequence.ids[-1] for sequence in self.sequences]
        self._logits = self._decoder.next_logits(ids, positions) if ids else self._logits[:0]
