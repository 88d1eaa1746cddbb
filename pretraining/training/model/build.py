"""The config and the weights of a model; under ZeRO-3 weights are sharded as they are created."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, set_seed
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pretraining.cli.arguments.pretrain import ModelArguments
from pretraining.data.store.manifest import StoreSpec
from pretraining.errors import UserError, nearest, raise_problems, shortened
from pretraining.training.model.fields import FIELDS, model_fields, number_problem, read_overrides
from pretraining.training.model.overrides import lost_overrides
from pretraining.training.model.weights import ParentWeights, load_parent

ROPE_FIELDS = (*RopeParameters.__annotations__, "type")
ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)


def load_model_config(arguments: ModelArguments, blocks: StoreSpec | None) -> LlamaConfig:
    """The config to train: the named model, with the vocabulary and special tokens of the blocks, if any.

    Raises:
        UserError: when the model is unknown or not a Llama, or does not fit the blocks.
    """
    fields = model_fields(arguments, blocks)
    config = _llama_config(arguments.place, fields)
    raise_problems(lost_overrides(read_overrides(arguments.model_overrides), config))
    if "initializer_range" not in fields:
        config.initializer_range = initial_deviation(config.hidden_size)
    if blocks is not None:
        config.bos_token_id = blocks.token_rules.bos_token_id
        config.eos_token_id = blocks.token_rules.eos_token_id
    multiple = arguments.pad_vocabulary_to_multiple_of
    if multiple is not None:
        config.vocab_size = -(-config.vocab_size // multiple) * multiple
    return config


def initial_deviation(hidden_size: int) -> float:
    """The standard deviation of fresh weights: sqrt(2 / (5 width)), and at least the 0.02 of Llama models.

    "Small init" of Nguyen and Salazar (arXiv 1910.05895, section 2.2), which is 0.02 at a width of 1,000. For narrower
    models 0.02 is too small, as a layer's output hardly differs from its input: at width 192 the loss after 160 steps
    is 5.65, and 3.08 with 0.046.
    """
    return max(0.02, math.sqrt(2 / (5 * hidden_size)))


def build_model(
    config: LlamaConfig,
    *,
    attention_implementation: str,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    parent: ParentWeights | None = None,
) -> PreTrainedModel:
    """Fresh weights, or those of a parent model, on the device and in the dtype of the engine.

    TrainingArguments with a DeepSpeed config must exist. With ZeRO-3 each rank holds its partition only: `from_config`
    looks there and partitions each parameter as it is created, where `LlamaForCausalLM(config)` would create the whole
    model on every rank. Below stage 3 each rank holds the whole model, once, and none of it in host memory.

    Rank 0 draws each fresh tensor on its device, in the dtype of the engine. So fresh weights depend neither on the
    stage nor on the number of processes, but a CPU and GPUs with other numbers of multiprocessors draw other ones.
    """
    set_seed(seed)
    try:
        if parent is not None:
            return load_parent(parent, attention_implementation, dtype=dtype, device=device)
        return _fresh_model(config, attention_implementation, dtype=dtype, device=device)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--attention_implementation {attention_implementation}: {reason}") from None


def _fresh_model(
    config: LlamaConfig, attention_implementation: str, *, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    create = partial(AutoModelForCausalLM.from_config, config, attn_implementation=attention_implementation)
    if is_deepspeed_zero3_enabled():
        return create(dtype=torch.float32)  # zero.Init has the engine's dtype
    with device, no_init_weights():
        model = create(dtype=dtype)
    model.init_weights()  # now, as under ZeRO-3: torch's own initialization would draw numbers before
    return model


def _llama_config(place: str, fields: dict[str, Any]) -> LlamaConfig:
    try:
        # No padding token: blocks have none, and torch does not train its embedding, which may be that of EOS.
        config = LlamaConfig.from_dict({**fields, "use_cache": False, "pad_token_id": None})
    except Exception as error:  # for a wrong type transformers raises various classes
        raise UserError(f"{place}: {' '.join(str(error.__cause__ or error).split())}") from None
    raise_problems(f"{place}: {problem}" for problem in shape_problems(config))
    return config


def shape_problems(config: LlamaConfig) -> Iterator[str]:
    """Problems of activation and rotary positions, as `field value: problem`.

    model/fields.py checks all that needs no torch. transformers accepts an unknown activation or a rotary base that is
    not a number, and fails when the weights are created, if at all.
    """
    if config.hidden_act not in ACT2FN:
        remedy = nearest(config.hidden_act, ACT2FN) or "; Llama has silu"
        yield f"hidden_act {shortened(config.hidden_act)}: is not an activation of transformers{remedy}"
    yield from _rope_problems(config)


def _rope_problems(config: LlamaConfig) -> Iterator[str]:
    rope = config.rope_parameters or {}
    unknown = [name for name in rope if name not in ROPE_FIELDS]
    kind, theta = rope.get("rope_type"), rope.get("rope_theta")
    if unknown:
        yield f"rope_parameters: has no field {shortened(str(unknown[0]))}{nearest(str(unknown[0]), ROPE_FIELDS)}"
    elif kind not in ROPE_TYPES:
        yield f"rope_type {shortened(str(kind))}: is not one of {', '.join(ROPE_TYPES)}"
    elif problem := number_problem(theta, FIELDS["rope_theta"]):
        yield f"rope_theta {shortened(str(theta))}: {problem}"
    elif not _has_frequencies(config):
        yield f"rope_parameters {shortened(str(rope))}: not all frequencies are above 0; check the numbers of {kind}"


def _has_frequencies(config: LlamaConfig) -> bool:
    try:
        frequencies = LlamaRotaryEmbedding(config).inv_freq
    except Exception:  # the formulas raise anything for a wrong or missing number
        return False
    return bool(frequencies.isfinite().all() and (frequencies > 0).all())
