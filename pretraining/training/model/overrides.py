"""What --model_overrides does to the fields of a config: which are possible, and how they are applied. No torch.

Rotary positions have three places in a config.json: rope_theta and rope_scaling as transformers before 5 writes them,
and rope_parameters. transformers 5 reads rope_scaling before rope_parameters, so an override of the latter alone would
silently have no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from pretraining.errors import shortened

if TYPE_CHECKING:
    from transformers import LlamaConfig

POSITION_FIELDS = {"max_position_embeddings", "rope_theta", "rope_parameters"}
# What can change with --weights: no tensor gets another shape or meaning.
OVERRIDABLE_FIELDS = POSITION_FIELDS | {"attention_dropout", "rms_norm_eps"}


def override_problems(overrides: Mapping[str, Any], weights: str | None) -> Iterator[str]:
    """Problems of --model_overrides that do not fit tensors which have their shapes already; none without --weights."""
    for name in sorted(overrides.keys() - OVERRIDABLE_FIELDS if weights is not None else ()):
        yield (
            f"--model_overrides {name}: does not fit --weights {shortened(str(weights))}, whose tensors have their "
            "shapes already; remove it, or train from random weights with --model"
        )


def parse_value(text: str) -> Any:
    """A YAML value; also reads 1e6 as a number. Anything else stays text."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):  # e.g. a date 2001-99-99
        return text


def apply_overrides(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the overrides in them; rope_parameters without a base keep that of the model."""
    merged = _with_one_rope(fields) if overrides.keys() & POSITION_FIELDS else dict(fields)
    rope = merged.get("rope_parameters")
    base = rope.get("rope_theta") if isinstance(rope, dict) else None
    merged |= overrides
    if isinstance(merged.get("rope_parameters"), dict):
        bases = {} if base is None else {"rope_theta": base}
        given = {"rope_theta": overrides["rope_theta"]} if "rope_theta" in overrides else {}
        merged["rope_parameters"] = {**bases, **merged["rope_parameters"], **given}
    return merged


def _with_one_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with what rope_scaling has in rope_parameters, as transformers 5 reads it."""
    found = dict(fields)
    scaling = found.pop("rope_scaling", None)
    if not scaling or not isinstance(scaling, dict):
        return found if scaling is None else dict(fields)  # transformers has the error for another type
    rope = {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type", "default"))}
    if found.get("rope_theta") is not None:
        rope.setdefault("rope_theta", found["rope_theta"])
    return {**found, "rope_parameters": rope}


def lost_overrides(overrides: Mapping[str, Any], config: LlamaConfig) -> Iterator[str]:
    """A line for each override that is not in the config that was made with it."""
    for name, value in overrides.items():
        if value is not None and not _is_in(config, name, value):
            yield f"--model_overrides {name}={shortened(str(value))}: has no effect on this config; remove it"


def _is_in(config: LlamaConfig, name: str, value: Any) -> bool:
    rope = config.rope_parameters or {}
    if name == "rope_theta":
        return rope.get("rope_theta") == value
    if name == "rope_parameters":
        return isinstance(value, dict) and value.items() <= rope.items()
    return getattr(config, name) == value
