#!/usr/bin/env python3
"""Continue prompts with a model that pretrain.py made, or with any Llama on the Hub.

    python3 generate.py                                          # the newest run in runs/
    python3 generate.py --model runs/quickstart --prompt "The council" "Scientists" --num_samples 3
    python3 generate.py --model runs/llama2_7b/checkpoint-500 --prompt_file prompts.jsonl --output samples.jsonl
    echo "The council" | python3 generate.py --model USER/NAME --revision COMMIT
    python3 generate.py --model runs/quickstart --interactive

--model takes a run folder (its exported model, or the newest complete checkpoint), an exported model, a checkpoint,
also one that holds only ZeRO shards, or a Hub id. A continuation ends at EOS, before a --stop text, or after
--max_new_tokens. With --output the same command goes on where it was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pretraining.cli.errors import run_program
from pretraining.cli.generate_arguments import GenerateArguments
from pretraining.cli.recipe import dataclass_group, parse_recipe


def main(argv: Sequence[str]) -> None:
    """Read the flags, load the model, continue each prompt."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Sampling", GenerateArguments)], argv)

    from pretraining.judging.comparisons import make_judge, open_comparisons
    from pretraining.sampling.generation import make_jobs
    from pretraining.sampling.model_source import find_model, load_model
    from pretraining.sampling.output import check_output, read_continuations, write_continuations
    from pretraining.sampling.prompts import read_prompts
    from pretraining.sampling.terminal import converse, show, stream

    prompts = [] if arguments.interactive else read_prompts(arguments)
    if arguments.output is not None:
        check_output(arguments.output)
    comparisons = open_comparisons(arguments.held_out, arguments.blocks)
    source = find_model(arguments.model, arguments.revision)
    model, tokenizer = load_model(source, arguments.dtype)
    if arguments.interactive:
        converse(model, tokenizer, arguments)
        return
    jobs = make_jobs(prompts, tokenizer, model.config, arguments)
    judge = make_judge(comparisons, model, tokenizer)
    if arguments.output is not None:
        write_continuations(model, tokenizer, jobs, arguments, source)
        texts = read_continuations(arguments.output) if arguments.stats else []
    else:
        texts = (stream if sys.stdout.isatty() else show)(model, tokenizer, jobs, arguments)
    if arguments.stats:
        judge.say(texts)


if __name__ == "__main__":
    run_program(main)
