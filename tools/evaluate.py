"""Evaluate models on held-out text, compare their completions, and report on files of completions.

    python3 -m tools.evaluate runs/llama2_7b --data_files held_out.jsonl            # each document separately
    python3 -m tools.evaluate runs/llama2_7b --data_files news=a.jsonl wiki=b.parquet --output metrics.json
    python3 -m tools.evaluate runs/llama2_7b/checkpoint-500 --dataset blocks --split test       # as in pretrain.py
    python3 -m tools.evaluate runs/llama2_7b --all_checkpoints --data_files held_out.jsonl --prompts "The council"
    python3 -m tools.evaluate runs/llama2_7b --tasks arc.jsonl lambada=words.jsonl  # multiple choice and cloze
    python3 -m tools.evaluate --completions samples.jsonl                           # repetition, diversity, length
    python3 -m tools.evaluate runs/llama2_7b --completions samples.jsonl --reference_files held_out.jsonl
    python3 -m tools.evaluate --completions samples.jsonl --blocks blocks           # and text copied from training data

Models are those of generate.py, files those of preprocess.py. A document is BOS (if the model's tokenizer adds it to a
prompt), its text, and EOS; longer ones than --window_tokens are scored in sliding windows with 50 % overlap. A first
token without context is not predicted, and its bytes are not counted.

Of completions: rep-n and distinct-n (pretraining/evaluation/text_statistics.py). With a model, their perplexity at
temperature 1, given the prompts: much lower than that of --reference_files suggests repetition, much higher
incoherence. With --blocks, the share of tokens copied from training documents in runs of 8 or more.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.cli.arguments.evaluate import EvaluationArguments
from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.system.escapes import escape_on_terminal

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from pretraining.evaluation.held_out import HeldOutMetrics
    from pretraining.evaluation.tasks import TaskScores
    from pretraining.generation.generate import Completion
    from pretraining.runs.model_source import ModelSource

    Evaluate = Callable[[LlamaForCausalLM, PreTrainedTokenizerFast], HeldOutMetrics]


def main(argv: Sequence[str]) -> None:
    """Evaluate, show and write what the flags select."""
    (arguments,) = parse_recipe(
        __doc__ or "", [dataclass_group("Evaluation", EvaluationArguments)], argv, first=["model"]
    )

    from pretraining.system.files import check_new_file

    if arguments.output is not None:
        check_new_file(arguments.output, flag="--output")
    content = evaluate_models(arguments) if arguments.completions is None else report_completions(arguments)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def report_completions(arguments: EvaluationArguments) -> dict[str, Any]:
    """Show the report on --completions; return it as JSON."""
    from pretraining.evaluation.completion_file import read_completion_file
    from pretraining.evaluation.report import CompletionEvaluator, open_references
    from pretraining.runs.model_source import find_model

    assert arguments.completions is not None
    completions = read_completion_file(arguments.completions, flag="--completions")
    references = open_references(arguments.reference_files, arguments.blocks)
    model = None
    if arguments.model:
        source = find_model(arguments.model[0])
        from pretraining.generation.load_model import load_model

        model = load_model(source)
    report = CompletionEvaluator(references, model).report(completions)
    show(*report.lines())
    return report.as_json()


def evaluate_models(arguments: EvaluationArguments) -> dict[str, Any]:
    """Show metrics, tasks and completions of each model; return them as JSON, without a list if there is one model."""
    from pretraining.evaluation.comparison import comparison_lines, metrics_lines
    from pretraining.evaluation.tasks import score_model, task_lines
    from pretraining.training.tasks.files import read_tasks

    tasks = read_tasks(arguments.tasks, flag="--tasks")
    sources = find_sources(arguments)
    evaluate = evaluation_of(arguments)  # opens all files before torch is imported
    metrics: dict[str, HeldOutMetrics] = {}
    scores: dict[str, TaskScores] = {}
    completions: dict[str, list[Completion]] = {}
    from torch.cuda import empty_cache

    from pretraining.generation.load_model import load_model

    for name, source in sources.items():
        model, tokenizer = load_model(source)
        if evaluate is not None:
            metrics[name] = evaluate(model, tokenizer)
        if tasks:
            scores[name] = score_model(model, tokenizer, tasks, batch_tokens=arguments.batch_tokens)
        if arguments.prompts:
            completions[name] = complete(model, tokenizer, arguments)
        del model, tokenizer  # the next one may not fit next to it
        gc.collect()  # accelerate's hooks refer to the layers, which refer to the hooks
        empty_cache()
    show(*metrics_lines(metrics), *task_lines(scores), *comparison_lines(arguments.prompts or [], completions))
    data = arguments.data_files or ([f"{arguments.dataset}:{arguments.split}"] if metrics else [])
    found = [
        {"model": source.location, "data": data}
        | (dataclasses.asdict(metrics[name]) if metrics else {})
        | ({"tasks": scores[name]} if tasks else {})
        | ({"completions": [dataclasses.asdict(one) for one in completions[name]]} if completions else {})
        for name, source in sources.items()
    ]
    return found[0] if len(found) == 1 else {"models": found}


def find_sources(arguments: EvaluationArguments) -> dict[str, ModelSource]:
    """The models by the names that are shown: of --all_checkpoints of one run, the names of its folders.

    Raises:
        UserError: if one is missing or passed twice.
    """
    from pretraining.runs.model_source import find_model, saved_models
    from pretraining.runs.run_folder import is_run_folder

    found: dict[str, ModelSource] = {}
    for word in arguments.model:
        is_run = arguments.all_checkpoints and is_run_folder(Path(word))
        for location in map(str, saved_models(Path(word))) if is_run else [word]:
            name = Path(location).name if is_run and len(arguments.model) == 1 else location
            if name in found:
                raise UserError(f"--model {location}: is passed twice; remove one")
            found[name] = find_model(location)
    return found


def evaluation_of(arguments: EvaluationArguments) -> Evaluate | None:
    """Open --data_files or --dataset, and return how to evaluate a model on them."""
    if arguments.data_files is not None:
        from pretraining.data.input.documents import ReadingOptions
        from pretraining.data.input.find import find_inputs

        files = find_inputs(arguments.data_files)
        options = ReadingOptions(
            max_document_bytes=arguments.max_document_bytes,
            text_field=arguments.text_field,
            source_field=arguments.source_field,
            split_text_files=arguments.split_text_files,
        )
        from pretraining.evaluation.held_out import evaluate_files

        return lambda model, tokenizer: evaluate_files(
            model,
            tokenizer,
            files,
            options=options,
            window_tokens=arguments.window_tokens,
            batch_tokens=arguments.batch_tokens,
        )
    if arguments.dataset is None:
        return None
    from pretraining.data.mixture import load_mixture

    mixture = load_mixture([arguments.dataset], revision=None)
    from pretraining.evaluation.blocks import evaluate_split
    from pretraining.training.data.dataset import BlockFields

    fields = BlockFields(arguments.document_masking, arguments.ignore_first_token)
    return lambda model, tokenizer: evaluate_split(
        model,
        tokenizer,
        mixture=mixture,
        split=arguments.split,
        fields=fields,
        batch_tokens=arguments.batch_tokens,
    )


def complete(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: EvaluationArguments
) -> list[Completion]:
    """A completion of each prompt, with the settings of generate.py."""
    from pretraining.generation.generate import complete_prompts

    greedy, seed = arguments.seed is None, arguments.seed or 0
    settings = GenerateArguments(max_new_tokens=arguments.max_new_tokens, greedy=greedy, seed=seed)
    return list(complete_prompts(model, tokenizer, arguments.prompts or [], arguments=settings))


def show(*lines: str) -> None:
    """Print lines, escaped on a terminal."""
    for line in lines:
        sys.stdout.write(escape_on_terminal(line, sys.stdout) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_program(main)
