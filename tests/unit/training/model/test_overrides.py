"""--model_overrides reach the config that is made, whatever form its rotary positions had."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from pretraining.cli.arguments.pretrain import ModelArguments
from pretraining.errors import UserError
from pretraining.training.model.build import load_model_config
from pretraining.training.model.overrides import apply_overrides, lost_overrides, override_problems

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Of Llama 3.1, Llama 2 with positions scaled linearly, an export of this suite, and one of transformers 5.
FORMS: list[dict[str, Any]] = [
    {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {
        "rope_theta": 5e5,
        "rope_parameters": {**LLAMA3, "rope_theta": 5e5},
        "rope_scaling": {**LLAMA3, "rope_theta": 5e5},
    },
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    {"rope_theta": 5e5, "rope_scaling": None},
    {},
]


def loaded(folder: Path, fields: dict[str, Any], *overrides: str) -> LlamaConfig:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **fields}))
    return load_model_config(ModelArguments(model=str(folder), model_overrides=list(overrides)), None)


@pytest.mark.parametrize("fields", FORMS)
def test_an_override_of_rotary_positions_is_in_the_config(tmp_path: Path, fields: dict[str, Any]) -> None:
    before = loaded(tmp_path, fields).rope_parameters
    after = loaded(tmp_path, fields, "rope_theta=2e6", "max_position_embeddings=4096").rope_parameters
    assert after == {**before, "rope_theta": 2e6}
    assert loaded(tmp_path, fields, "max_position_embeddings=4096").rope_parameters == before
    linear = loaded(tmp_path, fields, "rope_parameters={rope_type: linear, factor: 2.0}").rope_parameters
    assert linear == {"rope_type": "linear", "factor": 2.0, "rope_theta": before["rope_theta"]}
    both = loaded(tmp_path, fields, "rope_parameters={rope_type: linear, factor: 2.0}", "rope_theta=3e6")
    assert both.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e6}


def test_an_override_without_effect_is_one_line() -> None:
    overrides = {"rope_theta": 2e6, "hidden_size": 64, "num_key_value_heads": None}
    config = LlamaConfig(hidden_size=64, rope_parameters=dict(LLAMA3, rope_theta=5e5))
    (line,) = lost_overrides(overrides, config)
    assert line.startswith("--model_overrides rope_theta=2000000.0: has no effect")
    assert not list(lost_overrides({"rope_parameters": {"factor": 8.0}}, config))
    assert apply_overrides({"hidden_size": 32}, {"hidden_size": 64}) == {"hidden_size": 64}


def test_special_tokens_are_those_of_the_blocks() -> None:
    problems = list(override_problems({"bos_token_id": 5, "rope_theta": 1e6, "rms_norm_eps": 1e-5}, "m"))
    assert [problem.split(":")[0] for problem in problems] == ["--model_overrides bos_token_id"]
    assert not list(override_problems({"bos_token_id": 5}, None))


def test_a_wrong_type_of_rope_scaling_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        loaded(tmp_path, {"rope_scaling": "linear"}, "rope_theta=1e6")
