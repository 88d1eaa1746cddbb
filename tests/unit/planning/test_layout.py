"""Sizes in place of "auto": one layer is one message, and is gathered in time; small models are trained as before."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pretraining.errors import UserError
from pretraining.planning.flops import layer_parameters, parameter_shapes
from pretraining.planning.layout import MachineSpec, ZeroSettings, resolve_auto, resolve_hpz
from pretraining.planning.model_states import sub_groups
from pretraining.training.model.fields import DEFAULTS, load_presets
from tests.unit.planning.layouts import layout_of

SIZES = ("sub_group_size", "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters")
AUTO = dict.fromkeys((*SIZES, "stage3_param_persistence_threshold"), "auto")
BEFORE = {"sub_group_size": 1e9, "reduce_bucket_size": 5e7, "stage3_prefetch_bucket_size": 2e8}


def shape_of(preset: str) -> Any:
    fields = DEFAULTS | load_presets()[preset]
    return SimpleNamespace(**fields | {"head_dim": fields["hidden_size"] // fields["num_attention_heads"]})


@pytest.mark.parametrize("preset", load_presets())
@pytest.mark.guarantee(
    "A layer of any model is one message of gradients, and is gathered while the one before computes."
)
def test_a_layer_is_one_message_and_is_gathered_ahead(preset: str) -> None:
    shape = shape_of(preset)
    layer, found = layer_parameters(shape), resolve_auto(AUTO, shape)
    assert layer <= found["reduce_bucket_size"] <= max(layer, 5e7)
    assert layer <= found["stage3_prefetch_bucket_size"] <= max(layer, 2e8)
    # Between forward and backward as many as the distance stay; then one is released while the next one is gathered.
    assert found["stage3_max_live_parameters"] == 10**9 + 2 * layer, "DeepSpeed's stage3_max_reuse_distance"
    own = resolve_auto({**AUTO, "stage3_max_reuse_distance": 3e8}, shape)
    assert own["stage3_max_live_parameters"] == 3 * 10**8 + 2 * layer
    assert found["stage3_param_persistence_threshold"] == 10 * shape.hidden_size


def test_sizes_of_7b_and_70b() -> None:
    seven, seventy = (resolve_auto(AUTO, shape_of(name)) for name in ("llama2_7b", "llama2_70b"))
    assert seven["reduce_bucket_size"] == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 == 202_383_360
    assert seventy["reduce_bucket_size"] == seventy["stage3_prefetch_bucket_size"] == 855_654_400
    assert seven["sub_group_size"] == seventy["sub_group_size"] == 200_000_000


def test_a_small_model_has_the_sub_groups_and_messages_of_before() -> None:
    shape = shape_of("quickstart")
    assert resolve_auto(AUTO, shape)["reduce_bucket_size"] == BEFORE["reduce_bucket_size"]
    before, now = (sub_groups(layout_of("llama2_7b", shape=shape, zero=zero)) for zero in ({**AUTO, **BEFORE}, AUTO))
    assert before == now
    assert sum(group.size for group in now) < 5e7, "all is one message"
    assert len(now) == 2 < len(list(parameter_shapes(shape)))


def test_numbers_of_the_user_are_kept() -> None:
    own = {"reduce_bucket_size": 1000, "sub_group_size": 5e7, "stage3_max_live_parameters": 10, "overlap_comm": False}
    assert resolve_auto(own, shape_of("llama2_7b")) == own
    resolved = resolve_auto({**own, "stage3_param_persistence_threshold": "auto"}, shape_of("llama2_7b"))
    assert ZeroSettings.of(resolved) == ZeroSettings(50_000_000, 1000, 40960, 10)


def test_what_a_config_does_not_have_is_the_default_of_deepspeed() -> None:
    assert ZeroSettings.of({}) == ZeroSettings(10**9, 5 * 10**8, 10**5, 10**9)


def cluster(num_processes: int, num_local_processes: int) -> MachineSpec:
    return MachineSpec("cluster", num_processes, num_local_processes, None, None, None)


def test_hpz_is_of_the_processes_of_a_machine() -> None:
    for size in ("auto", 8):
        resolved = resolve_hpz({"zero_hpz_partition_size": size}, cluster(16, 8), place="--deepspeed ds.json")
        assert ZeroSettings.of(resolved).hpz_partition_size == 8
    for size in (0, 1):
        assert ZeroSettings.of({"zero_hpz_partition_size": size}).hpz_partition_size == 1
        assert resolve_hpz({"zero_hpz_partition_size": size}, cluster(8, 8), place="") == {
            "zero_hpz_partition_size": size
        }


@pytest.mark.parametrize(
    ("zero", "machine", "message"),
    [
        (
            {"zero_hpz_partition_size": 8},
            cluster(8, 8),
            "8: needs several machines, on one it only costs memory; use ds_",
        ),
        ({"zero_hpz_partition_size": 4}, cluster(16, 8), "4: is not the 8 processes of a machine; set it to 8 or auto"),
        (
            {"zero_hpz_partition_size": "auto"},
            cluster(12, 8),
            "auto: not all machines have 8 of the 12 processes; start as many",
        ),
        (
            {"zero_hpz_partition_size": "auto"},
            replace(cluster(16, 8), is_uniform=False),  # of 8, 4 and 4
            "auto: not all machines have 8 of the 16 processes; start as many",
        ),
        (
            {"zero_hpz_partition_size": 8, "offload_optimizer": {"device": "cpu"}},
            cluster(16, 8),
            "is not accepted with offload_optimizer (DeepSpeed trains wrongly with both); remove one of them",
        ),
    ],
)
def test_hpz_is_refused_in_one_line(zero: dict[str, Any], machine: MachineSpec, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_hpz(zero, machine, place="--deepspeed ds.json")
    (problem,) = caught.value.problems
    assert problem.startswith("--deepspeed ds.json: zero_optimization.zero_hpz_partition_size ")
    assert message in problem
