"""A model's configuration, and fresh weights for it, sharded as they are made."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, set_seed

from pretraining.cli.arguments.pretrain import ModelArguments
from pretraining.data.store.manifest import StoreSpec
from pretraining.errors import UserError
from pretraining.training.model.fields import model_fields
from pretraining.training.model.shape import shape_problems


def load_model_config(arguments: ModelArguments, blocks: StoreSpec | None) -> LlamaConfig:
    """The configuration to train: the named shape, with the vocabulary and special tokens of the blocks, if any.

    Raises:
        UserError: when the model is unknown or no Llama, or does not fit the blocks.
    """
    fields = model_fields(arguments, blocks)
    config = _llama_config(arguments.model, fields)
    if "initializer_range" not in fields:
        config.initializer_range = fresh_deviation(config.hidden_size)
    if blocks is not None:
        config.bos_token_id = blocks.token_rules.bos_token_id
        config.eos_token_id = blocks.token_rules.eos_token_id
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


def _llama_config(name: str, fields: dict[str, Any]) -> LlamaConfig:
    try:
        # No padding token: blocks have none, and torch never trains the embedding of one, which may be EOS.
        config = LlamaConfig.from_dict({**fields, "use_cache": False, "pad_token_id": None})
    except Exception as error:  # transformers wraps a wrong type in errors of its own, of no common class
        raise UserError(f"--model {name}: {' '.join(str(error.__cause__ or error).split())}") from None
    problems = [f"--model {name}: {problem}" for problem in shape_problems(config)]
    if problems:
        raise UserError(*problems)
    return config
