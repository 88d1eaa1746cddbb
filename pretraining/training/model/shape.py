"""What of a Llama's config only transformers can check: its activation and its rotary positions.

model_fields.py checks the rest without torch. transformers accepts a rotary base that is not a number, or an activation
that does not exist, and fails when the weights are created, if at all.
"""

from collections.abc import Iterator

from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pretraining.errors import nearest, shortened
from pretraining.training.model.fields import FIELDS, number_problem

ROPE_FIELDS = (*RopeParameters.__annotations__, "type")
ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)


def shape_problems(config: LlamaConfig) -> Iterator[str]:
    """What is wrong with a config whose fields are in their ranges, as `field value: problem`."""
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
    elif problem := number_problem(theta, FIELDS["rope_theta"]):
        yield f"rope_theta {shortened(str(theta))}: {problem}"
    elif not _has_frequencies(config):
        yield f"rope_parameters {shortened(str(rope))}: give no frequencies above 0; check the numbers of {kind}"


def _has_frequencies(config: LlamaConfig) -> bool:
    try:
        frequencies = LlamaRotaryEmbedding(config).inv_freq
    except Exception:  # whatever a formula does with what is not a number for it, or not there
        return False
    return bool(frequencies.isfinite().all() and (frequencies > 0).all())
