"""The configuration of a model: what is taken from where."""

import json
from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import ModelArguments
from pretraining.training.model.build import load_model_config
from pretraining.training.model.fields import load_presets


def deviation(model: str, *overrides: str) -> float:
    arguments = ModelArguments(model=model, model_overrides=list(overrides))
    return load_model_config(arguments, None).initializer_range


def test_published_shapes_keep_the_usual_deviation_of_fresh_weights() -> None:
    assert {deviation(name) for name in load_presets() if name != "quickstart"} == {0.02}


@pytest.mark.parametrize("width", [64, 192, 640])
def test_fresh_weights_of_narrow_models_fit_the_width(width: int) -> None:
    found = deviation("quickstart", f"hidden_size={width}")
    assert found**2 * 5 * width / 2 == pytest.approx(1, rel=1e-15)  # six roundings in fp64 of 1.1e-16 each


def test_a_deviation_that_is_given_stays(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    fields = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    config.write_text(json.dumps({**fields, "initializer_range": 0.02}))
    assert deviation(str(config)) == 0.02
    assert deviation("quickstart", "initializer_range=0.03") == 0.03
    config.write_text(json.dumps(fields))
    assert deviation(str(config)) == deviation("quickstart", "hidden_size=64")
