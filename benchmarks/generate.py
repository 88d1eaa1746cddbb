#!/usr/bin/env python3
"""Speed of generate.py compared with transformers' `generate`: same model, prompts, flags and process.

    python3 -m benchmarks.generate --model runs/quickstart

The ways take turns, each in both precisions. Tokens are those up to EOS, as they are given out. The result goes into
docs/benchmarks/generate.md.
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
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.results import PROJECT_DIR, command_line, hardware, spread, table, versions, write_section
from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.generation.generate import complete_prompts, eos_ids
from pretraining.generation.load_model import load_model
from pretraining.runs.model_source import find_model

logger = logging.getLogger("pretraining.benchmarks")

SETTINGS = {
    "generate.py's defaults": {},
    "greedy, no penalty": {"greedy": True, "repetition_penalty": 1.0},
}
OWN, PEER = "generate.py", "transformers"
DTYPES = ("float32", "bfloat16")
NOTES = """
Tokens per second and their ratio: median, minimum and maximum of the rounds. transformers loads the model with
`from_pretrained`. It completes the prompts, padded on the left, by `generate` with the same flags and its default cache
and attention. Neither compiles anything; both use torch's default number of threads. "By default" is the dtype that
each chooses for this model on this machine: generate.py {own}, transformers {peer}. cuDNN's attention is off for
generate.py, which turns it off, and on for transformers, as by default. On a GPU only
the decoder is measured ([GPU results](gpu.md)), transformers is not.
"""


@dataclass(frozen=True)
class GenerateSpeedArguments:
    """Flags of this comparison."""

    model: str = flag("runs/quickstart", "run folder or exported model")
    batch_sizes: list[int] = flag([1, 32], "prompts at once")
    num_prompts: int = flag(64, "prompts of a round; of a batch of one, a sixteenth of them")
    max_new_tokens: int = flag(200, "tokens of a continuation at most")
    num_rounds: int = flag(5, "times that each way is measured, after one that is not")
    output: Path = flag(Path("docs/benchmarks/generate.md"), "page to write")


@dataclass(frozen=True)
class Way:
    """A method and batch size for completing prompts; `is_default`: its precision is the default of the method."""

    name: str
    dtype: str
    is_default: bool
    continue_them: Callable[[Sequence[str], GenerateArguments], int]


def main(argv: Sequence[str]) -> None:
    """Measure, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", GenerateSpeedArguments)], argv)
    ways = list(_ways(arguments.model))
    defaults = {way.name: way.dtype for way in ways if way.is_default}
    rows = []
    for setting, batch_size in itertools.product(SETTINGS, arguments.batch_sizes):
        found = measure(ways, arguments, batch_size, SETTINGS[setting])
        pairs = {dtype: (found[OWN, dtype], found[PEER, dtype]) for dtype in DTYPES}
        pairs["by default"] = (found[OWN, defaults[OWN]], found[PEER, defaults[PEER]])
        for name, (ours, theirs) in pairs.items():
            factors = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            figures = [spread(ours, 0), spread(theirs, 0), spread(factors, 2)]
            rows.append([f"{setting}, batch {batch_size}: {name}", *figures])
            logger.info("%s", "  ".join(rows[-1]))
    text = f"{hardware()}, {torch.get_num_threads()} threads; {versions(['torch', 'transformers'])}.\n\n"
    text += f"{command_line('generate')}\n\n"
    text += table(["", "generate.py, tokens/s", "transformers, tokens/s", "generate.py is faster by"], rows)
    text += "\n" + NOTES.format(own=defaults[OWN], peer=defaults[PEER])
    write_section(arguments.output, "Against transformers' generate", text)
    logger.info("result: %s", arguments.output)


def measure(
    ways: Sequence[Way], arguments: GenerateSpeedArguments, batch_size: int, setting: dict
) -> dict[tuple[str, str], list[float]]:
    """Tokens per second of each method, by name and precision, in each round."""
    count = arguments.num_prompts if batch_size > 1 else max(arguments.num_prompts // 16, 1)
    prompts = list(itertools.islice(_beginnings(), count))
    flags = GenerateArguments(batch_size=batch_size, max_new_tokens=arguments.max_new_tokens, **setting)
    found: dict[tuple[str, str], list[float]] = {(way.name, way.dtype): [] for way in ways}
    for number in range(arguments.num_rounds + 1):
        for way in ways:
            started_at = time.perf_counter()
            num_tokens = way.continue_them(prompts, dataclasses.replace(flags, seed=number))
            if number > 0:
                found[way.name, way.dtype].append(num_tokens / (time.perf_counter() - started_at))
    return found


def _beginnings() -> Iterator[str]:
    """The first 4 to 12 words of stories."""
    for number, line in enumerate((PROJECT_DIR / SAMPLE_CORPUS).read_text(encoding="utf-8").splitlines()):
        words = json.loads(line)["text"].split()
        yield " ".join(words[: 4 + number % 9])


def _ways(model_name: str) -> Iterator[Way]:
    source = find_model(model_name)
    chosen, tokenizer = load_model(source)
    own_dtype = AutoConfig.from_pretrained(source.location).dtype or torch.float32
    for dtype in DTYPES:
        model, _ = load_model(source, dtype)
        yield Way(OWN, dtype, model.dtype == chosen.dtype, functools.partial(_continue, model, tokenizer))
        plain = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype).to(model.device).eval()
        yield Way(PEER, dtype, plain.dtype == own_dtype, functools.partial(_generate, plain, tokenizer))


def _continue(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], flags: GenerateArguments
) -> int:
    return sum(found.num_tokens for found in complete_prompts(model, tokenizer, prompts, arguments=flags))


def _generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], flags: GenerateArguments
) -> int:
    eos = eos_ids(model.config)
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
    torch.backends.cuda.enable_cudnn_sdp(True)
    for begin in range(0, len(prompts), flags.batch_size):
        batch = list(prompts[begin : begin + flags.batch_size])
        inputs = tokenizer(batch, return_tensors="pt", padding=True, return_token_type_ids=False)
        sequences = model.generate(**inputs.to(model.device), generation_config=config)
        for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
            num_tokens += next((place for place, token in enumerate(row) if token in eos), len(row))
    torch.backends.cuda.enable_cudnn_sdp(False)
    return num_tokens


if __name__ == "__main__":
    run_program(main)
