"""The fields of a model's config, from a preset, a file or the Hub, with --model_overrides; checked without torch.

LlamaConfig cannot be used, since importing it imports torch; a test compares DEFAULTS with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.cli.ranges import Range
from pretraining.errors import UserError, nearest, raise_problems, shortened
from pretraining.runs.export.model_folder import config_fields
from pretraining.runs.untrusted import check_no_code
from pretraining.training.model.overrides import apply_overrides, override_problems, parse_value

if TYPE_CHECKING:
    from pretraining.cli.arguments.pretrain import ModelArguments
    from pretraining.data.store.manifest import StoreSpec

PRESETS_PATH = Path(__file__).with_name("presets.yaml")
# LlamaConfig's, of transformers 5; None for a field that follows from others, or has no value.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NOT_OVERRIDABLE = {"use_cache", "pad_token_id"}  # set by this suite
HEADS = Range(1, 1 << 16)
FIELDS = {
    "vocab_size": Range(1, 10**7),
    "hidden_size": Range(1, 1 << 20),
    "intermediate_size": Range(1, 1 << 22),
    "num_hidden_layers": Range(1, 1000),
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": Range(2, 1 << 16),
    "max_position_embeddings": Range(1, 1 << 30),
    "initializer_range": Range(0, 1),
    "rms_norm_eps": Range(0, 1, above_low=True),
    "attention_dropout": Range(0, 1, below_high=True),
    "pretraining_tp": Range(1, 1024),
    "rope_theta": Range(0, 10**12, above_low=True),
}


class Heads(NamedTuple):
    """The attention heads of a model."""

    num_attention_heads: int
    num_key_value_heads: int


@cache
def load_presets() -> Mapping[str, Mapping[str, Any]]:
    """The models of presets.yaml by name."""
    return yaml.safe_load(PRESETS_PATH.read_text(encoding="utf-8"))


def model_fields(arguments: ModelArguments, blocks: StoreSpec | None) -> dict[str, Any]:
    """The config's fields: the named model with its overrides; a preset gets the vocabulary of the blocks.

    Raises:
        UserError: when the model is unknown or not a Llama, a field is wrong, or it does not fit the blocks.
    """
    presets = load_presets()
    is_preset = arguments.model in presets
    fields = presets[arguments.model] if is_preset else _read_config(arguments, tuple(presets))
    overrides = read_overrides(arguments.model_overrides)
    raise_problems(override_problems(overrides, arguments.weights))
    if blocks is not None and "vocab_size" not in overrides:
        num_tokens = blocks.tokenizer.vocab_size
        if is_preset or (arguments.grow_vocabulary and num_tokens > _with_defaults(fields)["vocab_size"]):
            overrides["vocab_size"] = num_tokens
    merged = apply_overrides(fields, overrides)
    _check_fields(merged, arguments.place)
    if blocks is not None:
        raise_problems(_problems_with_blocks(_with_defaults(merged), arguments, blocks))
    return merged


def heads_of(fields: Mapping[str, Any]) -> Heads:
    """The heads of a config; without num_key_value_heads, each head has its separate keys and values."""
    given = _with_defaults(fields)
    heads = given["num_attention_heads"]
    return Heads(heads, given["num_key_value_heads"] or heads)


def max_positions(fields: Mapping[str, Any]) -> int:
    """The longest sequence of a model with these fields, in tokens."""
    return _with_defaults(fields)["max_position_embeddings"]


def _with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**DEFAULTS, **{name: value for name, value in fields.items() if value is not None}}


def _read_config(arguments: ModelArguments, preset_names: tuple[str, ...]) -> dict[str, Any]:
    name, place = arguments.model, arguments.place
    if arguments.weights is not None:  # found and checked
        return config_fields(Path(name))
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        path = _download_config(name, preset_names)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place}: {path} is not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("model_type") != "llama":
        found = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise UserError(f"{place}: model_type is {found!r}; this suite trains Llama models (model_type 'llama')")
    check_no_code(fields, f"{place}: config.json")
    return fields


@cache
def _download_config(name: str, preset_names: tuple[str, ...]) -> Path:
    if Path(name).is_dir():
        raise UserError(f"--model {name}: the folder has no config.json; pass one that has, or a preset")
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"--model {name}: not a preset{nearest(name, preset_names)}, file or folder, and not a Hub name "
            f"(USER/NAME); presets: {', '.join(preset_names)}"
        )
    # Imported here: it takes 0.2 s, and only a model of the Hub needs it.
    from huggingface_hub import hf_hub_download

    from pretraining.hub.retry import HUB_ERRORS, read_problem

    try:
        return Path(hf_hub_download(name, "config.json"))
    except HUB_ERRORS as error:
        raise UserError(
            f"--model {name}: not a preset{nearest(name, preset_names)}, file or folder, and {read_problem(error)}; "
            f"presets: {', '.join(preset_names)}"
        ) from None


def read_overrides(texts: list[str]) -> dict[str, Any]:
    """Parse `hidden_size=512` into a field and its YAML value.

    Raises:
        UserError: with all that are not fields, or not in their ranges.
    """
    overridable = {*DEFAULTS, "rope_theta"} - NOT_OVERRIDABLE
    problems, overrides = [], {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--model_overrides {text}: expects field=value")
        elif name not in overridable:
            problems.append(f"--model_overrides {text}: a Llama config has no field {name}{nearest(name, overridable)}")
        else:
            overrides[name] = parse_value(value)
            problem = field_problem(name, overrides[name])
            problems += [] if problem is None else [f"--model_overrides {shortened(text)}: {problem}"]
    raise_problems(problems)
    return overrides


def _check_fields(fields: Mapping[str, Any], place: str) -> None:
    problems = [
        f"{place}: {field} {shortened(str(value))}: {problem}"
        for field, value in fields.items()
        if (problem := field_problem(field, value)) is not None
    ]
    problems = problems or [f"{place}: {problem}" for problem in _head_problems(_with_defaults(fields))]
    raise_problems(problems)


def field_problem(name: str, value: Any) -> str | None:
    """The problem of one field of a config; None also for fields without a range."""
    if name not in FIELDS or value is None:
        return None
    return number_problem(value, FIELDS[name])


def _head_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """The problems of the heads; a missing head_dim is hidden_size / num_attention_heads."""
    hidden_size, (heads, groups) = fields["hidden_size"], heads_of(fields)
    if not all(isinstance(number, int) for number in (hidden_size, heads, groups)):
        return  # transformers checks the types
    head_dim = fields["head_dim"] or hidden_size // heads
    if heads % groups:
        yield f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}; override one of them"
    if hidden_size % heads:
        yield f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}; override one of them"
    elif head_dim % 2:
        yield f"head_dim {head_dim}: must be even, as rotary positions rotate pairs; override head_dim or hidden_size"


def _problems_with_blocks(fields: Mapping[str, Any], arguments: ModelArguments, blocks: StoreSpec) -> Iterator[str]:
    vocab_size, num_positions = fields["vocab_size"], fields["max_position_embeddings"]
    num_tokens = blocks.tokenizer.vocab_size
    if vocab_size < num_tokens or vocab_size >= 2 * num_tokens:
        override = f"--model_overrides vocab_size={num_tokens}"
        remedy = override if arguments.weights is None else "--grow_vocabulary if it is an extension"
        yield (
            f"{arguments.place}: its vocabulary of {vocab_size:,} does not match the data set's tokenizer "
            f"{blocks.tokenizer.name} of {num_tokens:,}; preprocess with the model's tokenizer, or add {remedy}"
        )
    if blocks.block_length > num_positions:
        yield (
            f"--dataset: blocks of {blocks.block_length:,} tokens are longer than the "
            f"{num_positions:,} positions of {arguments.place}; preprocess with smaller --block_length, "
            f"or add --model_overrides max_position_embeddings={blocks.block_length}"
        )


def number_problem(value: Any, allowed: Range) -> str | None:
    """The problem of a value that must be a number in a range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    return allowed.problem(value)
