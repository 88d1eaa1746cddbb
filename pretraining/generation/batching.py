"""Texts that grow side by side: a row whose text has ended makes way for the next one at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.decoder import LlamaDecoder
from pretraining.generation.penalties import Penalties
from pretraining.generation.sampling import log_probabilities, random_numbers, sample_tokens

FREE_SHARE = 8  # prompts are read when an eighth of the rows is free: reading one takes as long as a token of all rows


@dataclass(frozen=True)
class Request:
    """A prompt to be continued once; its numbers say where it stands in the whole order."""

    prompt: str
    ids: list[int]
    prompt_number: int
    sample_number: int


@dataclass
class ActiveSequence:
    """What a job has come to so far; an EOS that ended it is among the ids."""

    job: Request
    numbers: list[float]
    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    finish_reason: str = ""


EndOf = Callable[[ActiveSequence], str]  # the finish reason of a text, "" while it goes on


def generate_batched(
    decoder: LlamaDecoder, jobs: Sequence[Request], end_of: EndOf, arguments: GenerateArguments
) -> Iterator[ActiveSequence]:
    """The text of each job as soon as it has ended; `end_of` is asked after each of its tokens."""
    rows = _Rows(decoder, arguments)
    waiting = list(reversed(jobs))
    while waiting or rows.texts:
        num_free = decoder.num_rows - len(rows.texts)
        if waiting and (not rows.texts or num_free * FREE_SHARE >= decoder.num_rows):
            rows.begin([waiting.pop() for _ in range(min(num_free, len(waiting)))])
        rows.add_tokens()
        for text in rows.texts:
            text.finish_reason = end_of(text)
        yield from rows.remove_ended()
        rows.advance()


class _Rows:
    """The first rows of a decoder, and what is known of each."""

    def __init__(self, decoder: LlamaDecoder, arguments: GenerateArguments) -> None:
        self.texts: list[ActiveSequence] = []
        self._decoder = decoder
        self._arguments = arguments
        self._penalties = Penalties(arguments, decoder)
        self._logits = torch.empty((0, decoder.vocab_size), device=decoder.device)

    def begin(self, jobs: Sequence[Request]) -> None:
        """Read the prompts of more jobs."""
        first, flags = len(self.texts), self._arguments
        logits = self._decoder.read_prompts([job.ids for job in jobs], first_row=first)
        self._logits = torch.cat((self._logits, logits))
        for row, job in enumerate(jobs, start=first):
            self._penalties.begin(row, job.ids)
            seeds = (flags.seed, job.prompt_number, job.sample_number)
            self.texts.append(ActiveSequence(job, random_numbers(*seeds, count=flags.max_new_tokens)))

    def add_tokens(self) -> None:
        """Draw the next token of each text."""
        numbers = [text.numbers[len(text.ids)] for text in self.texts]
        tokens = sample_tokens(self._penalties.applied(self._logits), numbers, self._arguments)
        self._penalties.add(tokens)
        chances = log_probabilities(self._logits, tokens).tolist()
        for text, token, chance in zip(self.texts, tokens.tolist(), chances, strict=True):
            text.ids.append(token)
            text.log_probability += chance

    def remove_ended(self) -> list[ActiveSequence]:
        """Take out the texts that have ended; the last one moves into each gap."""
        ended = []
        for row in reversed(range(len(self.texts))):
            if self.texts[row].finish_reason:
                ended.append(self.texts[row])
                last = self.texts.pop()
                if row < len(self.texts):
                    self.texts[row] = last
                    self._decoder.copy_row(len(self.texts), row, num_positions=len(last.job.ids) + len(last.ids))
                    self._penalties.move(len(self.texts), row)
        return ended[::-1]

    def advance(self) -> None:
        """Compute what may follow the last token of each text."""
        positions = [len(text.job.ids) + len(text.ids) - 1 for text in self.texts]
        ids = [text.ids[-1] for text in self.texts]
        self._logits = self._decoder.next_logits(ids, positions) if ids else self._logits[:0]
