"""The installed DeepSpeed still has every private part that checkpoints use, in each of its optimizers."""

import inspect
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils.mixed_precision_linkage import link_hp_params
from deepspeed.utils.tensor_fragment import tensor_fragment

from pretraining.training.distributed import deepspeed_checkpoints

STAGE_3 = ("checkpoint_event_prologue", "checkpoint_event_epilogue", "load_state_dict")


def test_the_review_was_of_the_installed_version() -> None:
    assert f"deepspeed {version('deepspeed')})" in (deepspeed_checkpoints.__doc__ or ""), "review each function first"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (DeepSpeedEngine, ("_copy_recovery_script", "load_checkpoint", "gradient_clipping")),
        (DeepSpeedZeroOptimizer_Stage3, STAGE_3),
        (DeepSpeedZeroOptimizer, ("load_state_dict", "update_lp_params")),
        (BF16_Optimizer, ("load_state_dict", "update_lp_params")),
    ],
)
def test_methods(owner: type, names: tuple[str, ...]) -> None:
    assert all(callable(getattr(owner, name)) for name in names)


def test_attributes_that_are_set_while_it_runs() -> None:
    sources = {owner: inspect.getsource(owner) for owner in (DeepSpeedEngine, DeepSpeedZeroOptimizer_Stage3)}
    for name in ("checkpoint_engine", *deepspeed_checkpoints.COUNTS):
        assert f"self.{name}" in sources[DeepSpeedEngine]
    assert "self.sub_group_to_group_id" in sources[DeepSpeedZeroOptimizer_Stage3]
    for owner in (DeepSpeedZeroOptimizer_Stage3, DeepSpeedZeroOptimizer, BF16_Optimizer):
        assert "self.clip_grad" in inspect.getsource(owner)
    assert "lp_param._hp_mapping = " in inspect.getsource(link_hp_params)
    assert "optim_fragment" in tensor_fragment.__dataclass_fields__


def test_deepspeed_loads_in_silence_and_leaves_the_clipping(capsys: pytest.CaptureFixture[str]) -> None:
    zero = SimpleNamespace(clip_grad=1.0, update_lp_params=lambda: None)

    def load(folder: str, tag: str, **_: bool) -> None:
        sys.stdout.write(f"_load_legacy_checkpoint {folder} {tag}")
        zero.clip_grad = 9.0  # that of the save

    engine: Any = SimpleNamespace(optimizer=zero, load_checkpoint=load, gradient_clipping=lambda: 1.0)
    engine.zero_optimization_partition_weights = lambda: False
    deepspeed_checkpoints.load_own_shard(engine, Path("checkpoint-1"), tag="global_step1")
    assert zero.clip_grad == 1.0
    assert capsys.readouterr().out == ""
