#!/usr/bin/env python3
"""Complete prompts with a model of pretrain.py, or with any Llama on the Hub.

    python3 generate.py "I wanna go"                             # the newest run in runs/
    python3 generate.py --model runs/quickstart --prompt "The council" "Scientists" --num_samples 3
    python3 generate.py --model runs/llama2_7b/checkpoint-500 --prompt_file prompts.jsonl --output samples.jsonl
    echo "The council" | python3 generate.py --model USER/NAME --revision COMMIT
    python3 generate.py --model runs/quickstart --interactive
    python3 generate.py --model runs/news_chat --chat            # of finetune.py

--model takes a run folder (its exported model, or the newest complete checkpoint), an exported model, a checkpoint,
including one with ZeRO shards only, or a Hub id. A completion ends at EOS, before a --stop text, or after
--max_new_tokens. With --output the same command resumes after an interruption.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.program import importing_libraries, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

if TYPE_CHECKING:
    from pretraining.evaluation.report import References
    from pretraining.runs.model_source import ModelSource

logger = logging.getLogger("pretraining.generate")


def main(argv: Sequence[str]) -> None:
    """Read the flags and find all files; torch is imported afterwards, so that errors are reported at once."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Sampling", GenerateArguments)], argv, first=["prompt"])

    from pretraining.generation.prompts import check_chat_template, read_prompts
    from pretraining.runs.model_source import find_model
    from pretraining.system.files import check_new_file

    prompts = [] if arguments.is_dialog else read_prompts(arguments)
    if arguments.output is not None:
        check_new_file(arguments.output, flag="--output")
    references = find_references(arguments) if arguments.stats else None
    source = find_model(arguments.model, arguments.revision)
    if arguments.chat:
        check_chat_template(Path(source.tokenizer_location))
    complete(prompts, source, references, arguments)


def find_references(arguments: GenerateArguments) -> References:
    """What --stats compares the completions with; its imports (`datasets`, pandas) are for --stats only."""
    from pretraining.evaluation.report import open_references

    return open_references(arguments.reference_files, arguments.blocks)


def complete(
    prompts: Sequence[str], source: ModelSource, references: References | None, arguments: GenerateArguments
) -> None:
    """Load the model and complete each prompt."""
    with importing_libraries():
        from pretraining.generation.chat import chat_loop
        from pretraining.generation.generate import make_requests
        from pretraining.generation.load_model import load_model
        from pretraining.generation.output import read_completions, write_completions
        from pretraining.generation.terminal import interactive_loop, print_completions, stream

    model, tokenizer = load_model(source, arguments.dtype)
    if arguments.is_dialog:
        (chat_loop if arguments.chat else interactive_loop)(model, tokenizer, arguments)
        return
    requests = make_requests(prompts, tokenizer, model.config, arguments)
    evaluator = None
    if references is not None:
        from pretraining.evaluation.report import CompletionEvaluator

        evaluator = CompletionEvaluator(references, (model, tokenizer))
    if arguments.output is not None:
        write_completions(model, tokenizer, requests, arguments, source)
        completions = [] if evaluator is None else read_completions(arguments.output)
    else:
        completions = (stream if sys.stdout.isatty() else print_completions)(model, tokenizer, requests, arguments)
    for line in () if evaluator is None else evaluator.report(completions).lines():
        logger.info(line)


if __name__ == "__main__":
    run_program(main)
