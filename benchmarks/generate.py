#!/usr/bin/env python3
"""How fast generate.py's texts grow, against transformers' own `generate`: same model, prompts, flags and run.

    python3 -m benchmarks.generate --model runs/quickstart

The ways take turns. Tokens are those up to EOS, as they are given out. The result goes into benchmarks/generate.md.
"""

import dataclasses
import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.results import PROJECT_DIR, command_line, hardware, spread, table, versions, write_section
from pretraining.cli.arguments import SAMPLE_CORPUS
from pretraining.cli.errors import run_program
from pretraining.cli.flags import flag
from pretraining.cli.generate_arguments import GenerateArguments
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.sampling.generation import continue_prompts, eos_ids
from pretraining.sampling.model_source import find_model, load_model

logger = logging.getLogger("pretraining.benchmarks")

SETTINGS = {
    "generate.py's defaults": {},
    "greedy, no penalty": {"greedy": True, "repetition_penalty": 1.0},
}
OWN = "generate.py"
NOTES = """
Tokens a second: median, least and most of the rounds. transformers opens the model by `from_pretrained` (its own
precision, or float32) and continues the prompts, filled up on the left, by `generate` with the same flags; its default
cache and attention. generate.py computes in the precision that it chooses here. Neither compiles anything, and both
have torch's default number of threads. On a GPU: not yet measured.
"""


@dataclass(frozen=True)
class GenerateSpeedArguments:
    """Flags of this comparison."""

    model: str = flag("runs/quickstart", "run folder or exported model")
    batch_sizes: list[int] = flag([1, 32], "prompts at once")
    num_prompts: int = flag(32, "prompts of a round; of a batch of one, an eighth of them")
    max_new_tokens: int = flag(100, "tokens of a continuation at most")
    num_rounds: int = flag(5, "times that each way is measured, after one that is not")
    output: Path = flag(Path("benchmarks/generate.md"), "where the result goes")


@dataclass(frozen=True)
class Way:
    """One way to continue prompts, in batches of a size: the tokens that it gives."""

    name: str
    continue_them: Callable[[Sequence[str], GenerateArguments], int]


def main(argv: Sequence[str]) -> None:
    """Measure, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", GenerateSpeedArguments)], argv)
    rows = []
    for setting, batch_size in itertools.product(SETTINGS, arguments.batch_sizes):
        found = measure(arguments, batch_size, SETTINGS[setting])
        ours = found[OWN]
        for name, speeds in found.items():
            factors = [mine / theirs for mine, theirs in zip(ours, speeds, strict=True)]
            rows.append([f"{setting}, batch {batch_size}: {name}", spread(speeds, 0), spread(factors, 2)])
            logger.info("%s", "  ".join(rows[-1]))
    text = f"{hardware()}, {torch.get_num_threads()} threads; {versions(['torch', 'transformers'])}.\n\n"
    text += f"{command_line('generate')}\n\n"
    text += table(["", "tokens/s", "generate.py is faster by"], rows) + "\n" + NOTES
    write_section(arguments.output, "Against transformers' generate", text)
    logger.info("result: %s", arguments.output)


def measure(arguments: GenerateSpeedArguments, batch_size: int, setting: dict) -> dict[str, list[float]]:
    """Tokens a second of each way in each round."""
    count = arguments.num_prompts if batch_size > 1 else max(arguments.num_prompts // 8, 1)
    prompts = list(itertools.islice(_beginnings(), count))
    flags = GenerateArguments(batch_size=batch_size, max_new_tokens=arguments.max_new_tokens, **setting)
    ways = list(_ways(arguments.model))
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(arguments.num_rounds + 1):
        for way in ways:
            began_at = time.perf_counter()
            num_tokens = way.continue_them(prompts, dataclasses.replace(flags, seed=number))
            if number > 0:
                found[way.name].append(num_tokens / (time.perf_counter() - began_at))
    return found


def _beginnings() -> Iterator[str]:
    """The first words of stories, 4 to 12 of them."""
    for number, line in enumerate((PROJECT_DIR / SAMPLE_CORPUS).read_text(encoding="utf-8").splitlines()):
        words = json.loads(line)["text"].split()
        yield " ".join(words[: 4 + number % 9])


def _ways(model_name: str) -> Iterator[Way]:
    source = find_model(model_name)
    model, tokenizer = load_model(source)
    yield Way(OWN, functools.partial(_continue, model, tokenizer))
    if model.dtype == torch.float32:
        halved, _ = load_model(source, "bfloat16")
        yield Way(f"{OWN} --dtype bfloat16", functools.partial(_continue, halved, tokenizer))
    for dtype in ("auto", "float32"):
        plain = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype).to(model.device).eval()
        name = f"transformers, {str(plain.dtype).removeprefix('torch.')}"
        yield Way(name, functools.partial(_generate, plain, tokenizer))


def _continue(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], flags: GenerateArguments
) -> int:
    return sum(found.num_tokens for found in continue_prompts(model, tokenizer, prompts, arguments=flags))


def _generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], flags: GenerateArguments
) -> int:
    eos = eos_ids(model)
    tokenizer.pad_token_id, tokenizer.padding_side = min(eos), "left"
    sampling = {"temperature": flags.temperature, "top_k": flags.top_k, "top_p": flags.top_p}
    config = GenerationConfig(
        max_new_tokens=flags.max_new_tokens,
        do_sample=not flags.greedy,
        repetition_penalty=flags.repetition_penalty,
        eos_token_id=sorted(eos),
        pad_token_id=min(eos),
        **({} if flags.greedy else sampling),
    )
    torch.manual_seed(flags.seed)
    num_tokens = 0
    for begin in range(0, len(prompts), flags.batch_size):
        batch = list(prompts[begin : begin + flags.batch_size])
        inputs = tokenizer(batch, return_tensors="pt", padding=True, return_token_type_ids=False)
        sequences = model.generate(**inputs.to(model.device), generation_config=config)
        for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
            num_tokens += next((place for place, token in enumerate(row) if token in eos), len(row))
    return num_tokens


if __name__ == "__main__":
    run_program(main)
