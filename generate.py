#!/usr/bin/env python3
"""Complete prompts with a model of pretrain.py, or with any Llama on the Hub.

    python3 generate.py                                          # the newest run in runs/
    python3 generate.py --model runs/quickstart --prompt "The council" "Scientists" --num_samples 3
    python3 generate.py --model runs/llama2_7b/checkpoint-500 --prompt_file prompts.jsonl --output samples.jsonl
    echo "The council" | python3 generate.py --model USER/NAME --revision COMMIT
    python3 generate.py --model runs/quickstart --interactive

--model takes a run folder (its exported model, or the newest complete checkpoint), an exported model, a checkpoint,
including one with ZeRO shards only, or a Hub id. A completion ends at EOS, before a --stop text, or after
--max_new_tokens. With --output the same command resumes after an interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

if TYPE_CHECKING:
    from pretraining.evaluation.report import Comparisons
    from pretraining.generation.source import ModelSource


def main(argv: Sequence[str]) -> None:
    """Read the flags and find all files; torch is imported after that, so that a mistake costs no time."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Sampling", GenerateArguments)], argv)

    from pretraining.generation.prompts import read_prompts
    from pretraining.generation.source import find_model
    from pretraining.system.files import check_new_file

    prompts = [] if arguments.interactive else read_prompts(arguments)
    if arguments.output is not None:
        check_new_file(arguments.output, flag="--output")
    comparisons = find_comparisons(arguments) if arguments.stats else None
    write(prompts, find_model(arguments.model, arguments.revision), comparisons, arguments)


def find_comparisons(arguments: GenerateArguments) -> Comparisons:
    """What --stats compares the texts with."""
    from pretraining.evaluation.report import open_references

    return open_references(arguments.held_out, arguments.blocks)


def write(
    prompts: Sequence[str], source: ModelSource, comparisons: Comparisons | None, arguments: GenerateArguments
) -> None:
    """Load the model and continue each prompt."""
    from pretraining.generation.generate import make_jobs
    from pretraining.generation.load_model import load_model
    from pretraining.generation.output import read_continuations, write_continuations
    from pretraining.generation.terminal import interactive_loop, print_completions, stream

    model, tokenizer = load_model(source, arguments.dtype)
    if arguments.interactive:
        interactive_loop(model, tokenizer, arguments)
        return
    jobs = make_jobs(prompts, tokenizer, model.config, arguments)
    judge = None
    if comparisons is not None:
        from pretraining.evaluation.evaluator import (
            make_evaluator,  # it imports `datasets` and pandas, for --stats alone
        )

        judge = make_evaluator(comparisons, model, tokenizer)
    if arguments.output is not None:
        write_continuations(model, tokenizer, jobs, arguments, source)
        texts = [] if judge is None else read_continuations(arguments.output)
    else:
        texts = (stream if sys.stdout.isatty() else print_completions)(model, tokenizer, jobs, arguments)
    if judge is not None:
        judge.say(texts)


if __name__ == "__main__":
    run_program(main)
