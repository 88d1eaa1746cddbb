"""What the configuration of a Llama must be, so that such a model can exist: for a plan as for a run.

transformers checks the types of the fields, and that heads divide the hidden size. It takes no layers, a rotary base
that is not a number, or an activation that nobody wrote, and fails when the weights are made, if at all.
"""

from collections.abc import Iterator
from typing import Any

from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pretraining.cli.flags import nearest, shortened
from pretraining.cli.ranges import Range

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
ROPE_FIELDS = (*RopeParameters.__annotations__, "type")
ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)


def field_problem(name: str, value: Any) -> str | None:
    """What is wrong with one field of a config; None also for fields that have no range."""
    if name not in FIELDS or value is None:
        return None
    return _number_problem(value, FIELDS[name])


def shape_problems(config: LlamaConfig) -> Iterator[str]:
    """What is wrong with a config whose fields are in their ranges, as `field value: problem`."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        yield f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}; override one of them"
    if config.head_dim % 2:
        yield f"head_dim {config.head_dim}: must be even, positions turn pairs; override head_dim or hidden_size"
    if config.hidden_act not in ACT2FN:
        remedy = nearest(config.hidden_act, ACT2FN) or "; Llama has silu"
        yield f"hidden_act {shortened(config.hidden_act)}: is not an activation of transformers{remedy}"
    yield from _rope_problems(config)


def _rope_problems(config: LlamaConfig) -> Iterator[str]:
    """Of what positions turn by: what a typo leaves, and frequencies that cannot be computed."""
    rope = config.rope_parameters or {}
    unknown = [name for name in rope if name not in ROPE_FIELDS]
    kind, theta = rope.get("rope_type"), rope.get("rope_theta")
    if unknown:
        yield f"rope_parameters: has no field {shortened(str(unknown[0]))}{nearest(str(unknown[0]), ROPE_FIELDS)}"
    elif kind not in ROPE_TYPES:
        yield f"rope_type {shortened(str(kind))}: is not one of {', '.join(ROPE_TYPES)}"
    elif problem := _number_problem(theta, FIELDS["rope_theta"]):
        yield f"rope_theta {shortened(str(theta))}: {problem}"
    elif not _has_frequencies(config):
        yield f"rope_parameters {shortened(str(rope))}: give no frequencies above 0; check the numbers of {kind}"


def _has_frequencies(config: LlamaConfig) -> bool:
    try:
        frequencies = LlamaRotaryEmbedding(config).inv_freq
    except Exception:  # whatever a formula does with what is not a number for it, or not there
        return False
    return bool(frequencies.isfinite().all() and (frequencies > 0).all())


def _number_problem(value: Any, allowed: Range) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    return allowed.problem(value)
