"""A model's configuration from a preset, a file or the Hub, and fresh weights for it, sharded as they are made."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, set_seed

from pretraining.cli.errors import UserError
from pretraining.cli.flags import nearest, shortened
from pretraining.cli.pretrain_arguments import ModelArguments
from pretraining.corpus.manifest import Origin
from pretraining.runs.untrusted import check_no_code
from pretraining.training.model_shape import field_problem, shape_problems

# The fields of a Llama that are the user's; the others of a config say nothing of its shape, or are ours.
OVERRIDABLE = {*LlamaConfig.__annotations__, "rope_theta"} - {"use_cache", "pad_token_id"}
PRESETS_PATH = Path(__file__).with_name("presets.yaml")


def load_presets() -> dict[str, dict[str, Any]]:
    """The model shapes of presets.yaml by name."""
    return yaml.safe_load(PRESETS_PATH.read_text(encoding="utf-8"))


def load_model_config(arguments: ModelArguments, blocks: Origin | None) -> LlamaConfig:
    """The configuration to train: the named shape, with the vocabulary and special tokens of the blocks, if any.

    Raises:
        UserError: when the model is unknown or no Llama, or does not fit the blocks.
    """
    presets = load_presets()
    is_preset = arguments.model in presets
    fields = presets[arguments.model] if is_preset else _read_config(arguments.model, list(presets))
    overrides = _overrides(arguments.model_overrides)
    if blocks is not None and is_preset and "vocab_size" not in overrides:
        overrides["vocab_size"] = blocks.tokenizer.vocab_size
    fields = _merged(fields, overrides)
    config = _llama_config(arguments.model, fields)
    if "initializer_range" not in fields:
        config.initializer_range = fresh_deviation(config.hidden_size)
    if blocks is not None:
        config.bos_token_id = blocks.token_rules.bos_token_id
        config.eos_token_id = blocks.token_rules.eos_token_id
        _check_against_blocks(config, arguments.model, blocks)
    multiple = arguments.pad_vocabulary_to_multiple_of
    if multiple is not None:
        config.vocab_size = -(-config.vocab_size // multiple) * multiple
    return config


def fresh_deviation(hidden_size: int) -> float:
    """The standard deviation of fresh weights of a model so wide: sqrt(2 / (5 width)), and at least the usual 0.02.

    "Small init" of Nguyen and Salazar (arXiv 1910.05895, section 2.2). It is 0.02 at a width of 1,000. Below that 0.02
    is too little: the output of a layer hardly differs from its input at first, and a model of width 192 has a loss of
    5.65 after 160 steps where one with 0.046 has 3.08. From 1,000 on, 0.02 is what Llama models are trained with.
    """
    return max(0.02, math.sqrt(2 / (5 * hidden_size)))


def build_model(
    config: LlamaConfig, *, attention_implementation: str, seed: int, weights: Path | None = None
) -> PreTrainedModel:
    """Fresh weights, or those of the exported model in a folder, each rank holding its partition only.

    TrainingArguments with a ZeRO-3 config must be alive: `from_config` looks there and partitions every parameter as
    it is made, where `LlamaForCausalLM(config)` would first make the whole model on every rank. `from_pretrained` does
    so too, and the first rank alone reads the files, which are mapped.
    """
    set_seed(seed)
    try:
        if weights is not None:
            return _load_model(weights, config, attention_implementation)
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attention_implementation, dtype=torch.float32
        )
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--attention_implementation {attention_implementation}: {reason}") from None


def _load_model(folder: Path, config: LlamaConfig, attention_implementation: str) -> PreTrainedModel:
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=copy.deepcopy(config),
            attn_implementation=attention_implementation,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {folder}: cannot be loaded ({' '.join(str(error).split())})") from None
    if found["missing_keys"]:
        raise UserError(f"--model {folder}: has no {', '.join(sorted(found['missing_keys'])[:3])}; export it again")
    return model


def _read_config(name: str, preset_names: list[str]) -> dict[str, Any]:
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        path = _download_config(name, preset_names)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--model {name}: {path} is not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("model_type") != "llama":
        found = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise UserError(f"--model {name}: model_type is {found!r}; this suite trains Llama models (model_type 'llama')")
    check_no_code(fields, f"--model {name}: config.json")
    return fields


def _download_config(name: str, preset_names: list[str]) -> Path:
    try:
        return Path(hf_hub_download(name, "config.json"))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--model {name}: is no preset{nearest(name, preset_names)}, file or folder, and the Hub does not give it "
            f"({reason}); presets: {', '.join(preset_names)}"
        ) from None


def _overrides(texts: list[str]) -> dict[str, Any]:
    """`hidden_size=512` as a field and its value, read as YAML reads it."""
    problems, overrides = [], {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--model_overrides {text}: expects field=value")
        elif name not in OVERRIDABLE:
            problems.append(f"--model_overrides {text}: a Llama config has no field {name}{nearest(name, OVERRIDABLE)}")
        else:
            overrides[name] = _value(value)
            problem = field_problem(name, overrides[name])
            problems += [] if problem is None else [f"--model_overrides {shortened(text)}: {problem}"]
    if problems:
        raise UserError(*problems)
    return overrides


def _value(text: str) -> Any:
    """As YAML reads it, and 1e6 is a number too; what is neither is a text, which no number may be."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):  # such as a date 2001-99-99
        return text


def _merged(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides over fields; rope_theta stands inside rope_parameters in configs of transformers 5."""
    merged = {**fields, **overrides}
    if "rope_theta" in overrides and isinstance(merged.get("rope_parameters"), dict):
        merged["rope_parameters"] = {**merged["rope_parameters"], "rope_theta": overrides["rope_theta"]}
    return merged


def _llama_config(name: str, fields: dict[str, Any]) -> LlamaConfig:
    problems = [
        f"--model {name}: {field} {shortened(str(value))}: {problem}"
        for field, value in fields.items()
        if (problem := field_problem(field, value)) is not None
    ]
    if problems:
        raise UserError(*problems)
    try:
        # No padding token: blocks have none, and torch never trains the embedding of one, which may be EOS.
        config = LlamaConfig.from_dict({**fields, "use_cache": False, "pad_token_id": None})
    except Exception as error:  # transformers wraps a wrong type in errors of its own, of no common class
        raise UserError(f"--model {name}: {' '.join(str(error.__cause__ or error).split())}") from None
    problems = [f"--model {name}: {problem}" for problem in shape_problems(config)]
    if problems:
        raise UserError(*problems)
    return config


def _check_against_blocks(config: LlamaConfig, name: str, blocks: Origin) -> None:
    problems = []
    if config.vocab_size < blocks.tokenizer.vocab_size or config.vocab_size >= 2 * blocks.tokenizer.vocab_size:
        problems.append(
            f"--model {name}: its vocabulary of {config.vocab_size:,} does not match the data set's tokenizer "
            f"{blocks.tokenizer.name} of {blocks.tokenizer.vocab_size:,}; preprocess with the model's tokenizer, or "
            f"add --model_overrides vocab_size={blocks.tokenizer.vocab_size}"
        )
    if blocks.block_length > config.max_position_embeddings:
        problems.append(
            f"--dataset: blocks of {blocks.block_length:,} tokens are longer than the "
            f"{config.max_position_embeddings:,} positions of --model {name}; preprocess with smaller --block_length, "
            f"or add --model_overrides max_position_embeddings={blocks.block_length}"
        )
    if problems:
        raise UserError(*problems)
