"""Text for a person: on a terminal as it grows, or asked for prompt by prompt; elsewhere when it is whole."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Sequence

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.generation.batching import Request
from pretraining.generation.generate import Completion, continue_jobs, in_order, make_jobs
from pretraining.generation.prompts import check_text
from pretraining.system.escapes import escape_on_terminal

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what the bytes of one decode to while some are missing

logger = logging.getLogger(__name__)


def print_completions(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, jobs: Sequence[Request], arguments: GenerateArguments
) -> list[Completion]:
    """Write each prompt with its continuation, in their order, which are returned."""
    shown = []
    for continuation in in_order(jobs, continue_jobs(model, tokenizer, jobs, arguments=arguments)):
        _write(f"{continuation.prompt}{continuation.text}\n\n")
        shown.append(continuation)
    return shown


def stream(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, jobs: Sequence[Request], arguments: GenerateArguments
) -> list[Completion]:
    """Write one continuation after the other, each token as it is made; they are returned."""
    shown = []
    display = StreamingPrinter(arguments.stop or ())
    alone = dataclasses.replace(arguments, batch_size=1)
    for continuation in continue_jobs(model, tokenizer, jobs, arguments=alone, watch=display.watch):
        display.end(continuation)
        shown.append(continuation)
    return shown


def interactive_loop(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: GenerateArguments) -> None:
    """Continue what is typed, until an empty line or Ctrl-D; Ctrl-C ends a continuation, or else the program."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives `input` the arrow keys
    number = 0
    with contextlib.suppress(EOFError):
        while prompt := input("> "):
            try:
                check_text(prompt)
                jobs = make_jobs([prompt], tokenizer, model.config, arguments, first_number=number)
                stream(model, tokenizer, jobs, arguments)
            except UserError as error:  # of this prompt; the next one may be shorter
                logger.error(error)
            except KeyboardInterrupt:
                _write("\n\n")
            number += 1


class StreamingPrinter:
    """Writes each text as far as it is sure: no half character, nothing that may become a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._key = (-1, -1)
        self._num_shown = 0

    def watch(self, job: Request, text: str) -> None:
        """Write what is new in the text of a job; the first time, its prompt before it."""
        self._begin(job)
        self._show(text[: self._num_sure(text)])

    def end(self, continuation: Completion) -> None:
        """Write the rest of a text that has ended."""
        self._begin(continuation)
        self._show(continuation.text)
        _write("\n\n")

    def _begin(self, job: Request | Completion) -> None:
        key = (job.prompt_number, job.sample_number)
        if key != self._key:
            self._key, self._num_shown = key, 0
            _write(job.prompt)

    def _show(self, text: str) -> None:
        _write(text[self._num_shown :])
        self._num_shown = max(self._num_shown, len(text))

    def _num_sure(self, text: str) -> int:
        """Characters that will stay as they are."""
        text = text.rstrip(HALF_A_CHARACTER)
        stops = [text.find(stop) for stop in self._stops if stop in text]
        half_stops = [
            len(text) - size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])
        ]
        return min([len(text), *stops, *half_stops])


def _write(text: str) -> None:
    sys.stdout.write(escape_on_terminal(text, sys.stdout))
    sys.stdout.flush()
