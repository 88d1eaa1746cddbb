"""Continue prompts with a model, sampled or greedy, the same text for the same seed."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, TextStreamer, set_seed

from pretraining.cli.arguments import GenerateArguments
from pretraining.cli.errors import UserError


@dataclass(frozen=True)
class Continuation:
    """One continuation of one prompt. `finish_reason` is "eos" or "length"."""

    prompt: str
    text: str
    num_tokens: int
    finish_reason: str


def read_prompts(arguments: GenerateArguments) -> list[str]:
    """The prompts of --prompt, or the lines of --prompt_file.

    Raises:
        UserError: when the file cannot be read, or a prompt is empty.
    """
    if arguments.prompt_file is None:
        prompts = arguments.prompt
    else:
        place = f"--prompt_file {arguments.prompt_file}"
        try:
            lines = arguments.prompt_file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{place}: is not UTF-8 text; save it as UTF-8") from None
        except OSError as error:
            raise UserError(f"{place}: cannot be read ({error.strerror}); check the path") from None
        prompts = [line for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"{place}: has no line with a prompt")
    if not all(prompts):
        raise UserError("--prompt: is empty; give at least one word")
    return prompts


def generation_config(arguments: GenerateArguments, model: PreTrainedModel) -> GenerationConfig:
    """The flags as transformers takes them, with the model's own EOS."""
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": arguments.top_k}
    return GenerationConfig(
        max_new_tokens=arguments.max_new_tokens,
        num_return_sequences=arguments.num_samples,
        do_sample=not arguments.greedy,
        repetition_penalty=arguments.repetition_penalty,
        eos_token_id=sorted(eos_ids(model)) or None,
        pad_token_id=min(eos_ids(model), default=0),
        **({} if arguments.greedy else sampling),
    )


def terminal_streamer(tokenizer: PreTrainedTokenizerFast) -> TextStreamer:
    """Shows prompt and continuation on stdout, word by word as they are made."""
    return TextStreamer(tokenizer, skip_special_tokens=True)


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    *,
    arguments: GenerateArguments,
    streamer: TextStreamer | None = None,
) -> Iterator[Continuation]:
    """Each continuation of each prompt in turn; prompt i is sampled with seed + i."""
    config = generation_config(arguments, model)
    for number, prompt in enumerate(prompts):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
        set_seed((arguments.seed + number) % 2**32)
        sequences = model.generate(**inputs, generation_config=config, streamer=streamer)
        for sequence in sequences:
            yield _continuation(prompt, inputs["input_ids"][0].tolist(), sequence.tolist(), eos_ids(model), tokenizer)


def eos_ids(model: PreTrainedModel) -> set[int]:
    """Ids that end a text; some models have several."""
    ids = model.config.eos_token_id
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}


def check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], *, max_new_tokens: int
) -> None:
    """Refuse, before the first is continued, prompts that leave no room for --max_new_tokens."""
    positions = model.config.max_position_embeddings
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    if longest + max_new_tokens > positions:
        raise UserError(
            f"--max_new_tokens {max_new_tokens}: with a prompt of {longest} tokens exceeds the model's {positions} "
            f"positions; give {max(positions - longest, 0)} or less, or a shorter prompt"
        )


def _continuation(
    prompt: str,
    prompt_ids: list[int],
    sequence: list[int],
    eos: set[int],
    tokenizer: PreTrainedTokenizerFast,
) -> Continuation:
    """What the model added, up to EOS.

    It is decoded behind its prompt: SentencePiece drops the space in front of the first word of whatever it decodes.
    """
    new_ids = sequence[len(prompt_ids) :]
    ids = list(itertools.takewhile(lambda token_id: token_id not in eos, new_ids))
    ended = len(ids) < len(new_ids)
    decoded_prompt = tokenizer.decode(prompt_ids, skip_special_tokens=True)
    text = tokenizer.decode(prompt_ids + ids, skip_special_tokens=True)[len(decoded_prompt) :]
    return Continuation(prompt, text, len(ids), "eos" if ended else "length")


def check_output(path: Path) -> None:
    """Refuse to write over a file."""
    if path.exists():
        raise UserError(f"--output {path}: exists already; choose another file")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it or choose another file")
