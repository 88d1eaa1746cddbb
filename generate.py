#!/usr/bin/env python3
"""Sample continuations of prompts from a model that pretrain.py made, or from any Llama on the Hub.

    python3 generate.py                                          # the newest run in runs/
    python3 generate.py --model runs/quickstart --prompt "The council" "Scientists" --num_samples 3
    python3 generate.py --model runs/llama2_7b/checkpoint-500 --prompt_file prompts.txt --output samples.jsonl

--model takes a run folder (its exported model, or the newest complete checkpoint), an exported model, a checkpoint,
also one that holds only ZeRO shards, or a Hub id. A continuation ends at EOS or after --max_new_tokens.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jsonlines

from pretraining.cli.arguments import GenerateArguments
from pretraining.cli.errors import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

if TYPE_CHECKING:
    from pretraining.sampling.generation import Continuation

logger = logging.getLogger("pretraining.generate")


def main(argv: Sequence[str]) -> None:
    """Read the flags, load the model, continue each prompt."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Sampling", GenerateArguments)], argv)

    from pretraining.sampling.generation import (
        check_lengths,
        check_output,
        continue_prompts,
        read_prompts,
        terminal_streamer,
    )
    from pretraining.sampling.model_source import find_model, load_model

    prompts = read_prompts(arguments)
    if arguments.output is not None:
        check_output(arguments.output)
    source = find_model(arguments.model)
    model, tokenizer = load_model(source)
    logger.info("model: %s, %s parameters, on %s", source.location, f"{model.num_parameters():,}", model.device)
    check_lengths(model, tokenizer, prompts, max_new_tokens=arguments.max_new_tokens)
    streams = sys.stdout.isatty() and arguments.output is None and arguments.num_samples == 1
    streamer = terminal_streamer(tokenizer) if streams else None
    continuations = continue_prompts(model, tokenizer, prompts, arguments=arguments, streamer=streamer)
    if arguments.output is not None:
        write_lines(continuations, arguments.output)
    else:
        show(continuations, already_streamed=streams)


def show(continuations: Iterable[Continuation], *, already_streamed: bool) -> None:
    """Print each prompt with its continuation, unless it was streamed as it was made."""
    for continuation in continuations:
        text = "" if already_streamed else continuation.prompt + continuation.text + "\n"
        print(text, flush=True)  # noqa: T201


def write_lines(continuations: Iterable[Continuation], path: Path) -> None:
    """Write one JSON object a continuation, as soon as it is there."""
    num_lines = 0
    with jsonlines.open(path, "w", flush=True) as writer:
        for continuation in continuations:
            writer.write(dataclasses.asdict(continuation))
            num_lines += 1
    logger.info("%s continuations: %s", f"{num_lines:,}", path)


if __name__ == "__main__":
    run_program(main)
