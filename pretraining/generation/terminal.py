"""Completions on stdout: streamed and interactive on a terminal, elsewhere each when it is finished."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Sequence

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.generation.batching import Request
from pretraining.generation.generate import Completion, complete_requests, in_order, make_requests
from pretraining.generation.prompts import check_text
from pretraining.system.escapes import escape_on_terminal

REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 sequence decodes to

logger = logging.getLogger(__name__)


def print_completions(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    arguments: GenerateArguments,
) -> list[Completion]:
    """Print each prompt with its completion, in order, and return them."""
    completions = []
    for completion in in_order(requests, complete_requests(model, tokenizer, requests, arguments=arguments)):
        write_out(f"{completion.prompt}{completion.text}\n\n")
        completions.append(completion)
    return completions


def stream(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    arguments: GenerateArguments,
) -> list[Completion]:
    """Print one completion after another, token by token, and return them."""
    completions = []
    printer = StreamingPrinter(arguments.stop or ())
    one_by_one = dataclasses.replace(arguments, batch_size=1)
    for completion in complete_requests(model, tokenizer, requests, arguments=one_by_one, on_token=printer.update):
        printer.end(completion)
        completions.append(completion)
    return completions


def interactive_loop(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: GenerateArguments) -> None:
    """Complete typed prompts until an empty line or Ctrl-D; Ctrl-C ends a completion, or else the program."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives `input` the arrow keys
    number = 0
    with contextlib.suppress(EOFError):
        while prompt := input("> "):
            try:
                check_text(prompt)
                requests = make_requests([prompt], tokenizer, model.config, arguments, first_number=number)
                stream(model, tokenizer, requests, arguments)
            except UserError as error:  # about this prompt; the next one may be shorter
                logger.error(error)
            except KeyboardInterrupt:
                write_out("\n\n")
            number += 1


class StreamingPrinter:
    """Print growing texts without incomplete characters and without what may become a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._key = (-1, -1)
        self._num_shown = 0

    def update(self, request: Request, text: str) -> None:
        """Print the new characters of a text; the first time, its prompt before it."""
        self._start(request)
        self._show(text[: self._num_final(text)])

    def end(self, completion: Completion) -> None:
        """Print the rest of a finished text."""
        self._start(completion)
        self._show(completion.text)
        write_out("\n\n")

    def _start(self, item: Request | Completion) -> None:
        if item.key != self._key:
            self._key, self._num_shown = item.key, 0
            write_out(item.prompt)

    def _show(self, text: str) -> None:
        write_out(text[self._num_shown :])
        self._num_shown = max(self._num_shown, len(text))

    def _num_final(self, text: str) -> int:
        """Number of characters that later tokens cannot change."""
        text = text.rstrip(REPLACEMENT_CHARACTER)
        stops = [text.find(stop) for stop in self._stops if stop in text]
        partial_stops = [
            len(text) - size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])
        ]
        return min([len(text), *stops, *partial_stops])


def write_out(text: str) -> None:
    """Write to stdout at once; on a terminal without what could act on it."""
    sys.stdout.write(escape_on_terminal(text, sys.stdout))
    sys.stdout.flush()
