"""What the DeepSpeed config may set changes memory and messages, and not what is trained."""

import json
from pathlib import Path

import pytest

from pretraining.cli.deepspeed_keys import ACCEPTED, STAGE_3_KEYS
from tests.conftest import PROJECT_DIR
from tests.programs.launching import figures, records, train
from tests.rounding import assert_same_training
from tests.unit.cli.test_deepspeed_config import MEGATRON

pytestmark = pytest.mark.launch
FLAGS = ["--max_steps", 4, "--eval_strategy", "no", "--save_strategy", "no", "--export", "false"]
# Every accepted key of zero_optimization that ds_config.json has not, or another value of it.
OTHER_WAYS = {
    "overlap_comm": False,
    "contiguous_gradients": False,
    "reduce_scatter": False,
    "reduce_bucket_size": 1000,
    "sub_group_size": 3000,
    "stage3_prefetch_bucket_size": 100,
    "stage3_param_persistence_threshold": 0,
    "stage3_model_persistence_threshold": 10_000,
    "stage3_max_live_parameters": 1000,
    "stage3_max_reuse_distance": 0,
    "offload_optimizer": {"device": "cpu", "pin_memory": False, "buffer_count": 5, "ratio": 1.0},
    "offload_param": {"device": "cpu", "pin_memory": False, "buffer_count": 6, "buffer_size": 1e6, "max_in_cpu": 1e6},
    "allgather_partitions": False,
    "allgather_bucket_size": 1000,
    "round_robin_gradients": True,
    "ignore_unused_parameters": False,
    "use_multi_rank_bucket_allreduce": False,
}
OFFLOADED = ("offload_optimizer", "offload_param")


@pytest.fixture(scope="module")
def reference(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    train("1 rank", sample_store, run_dir, *FLAGS)
    return figures(run_dir)


@pytest.mark.parametrize("is_offloaded", [pytest.param(False, marks=pytest.mark.long), True])
def test_every_accepted_key_trains_the_same(
    is_offloaded: bool, reference: list[tuple[float, float]], sample_store: Path, tmp_path: Path
) -> None:
    untouched = {"stage", "stage3_gather_16bit_weights_on_model_save", "zero_hpz_partition_size"}  # plan/test_hpz.py
    assert set(OTHER_WAYS) == set(ACCEPTED["zero_optimization"]) - untouched
    config = json.loads((PROJECT_DIR / "ds_config.json").read_text())
    ways = {name: value for name, value in OTHER_WAYS.items() if is_offloaded or name not in OFFLOADED}
    config["zero_optimization"] |= ways
    config |= {"steps_per_print": 1, "wall_clock_breakdown": True, "zero_allow_untested_optimizer": False}
    config |= {"train_batch_size": 8, "gradient_clipping": 1}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    train("2 ranks", sample_store, tmp_path / "run", *FLAGS, "--deepspeed", tmp_path / "ds.json")
    assert_same_training(figures(tmp_path / "run"), reference)
    used = json.loads((tmp_path / "run/run.json").read_text())["ds_config_resolved"]["zero_optimization"]
    assert (used["sub_group_size"], used["reduce_scatter"], used["overlap_comm"]) == (3000, False, False)


# In fp32 both stages have one optimizer of DeepSpeed.
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.long), 2])
def test_every_accepted_key_of_a_lower_stage_trains_the_same(
    stage: int, reference: list[tuple[float, float]], sample_store: Path, tmp_path: Path
) -> None:
    config = json.loads((PROJECT_DIR / f"ds_config_zero{stage}.json").read_text())
    ways = {name: value for name, value in OTHER_WAYS.items() if not name.startswith((*STAGE_3_KEYS, *OFFLOADED))}
    config["zero_optimization"] |= {**ways, "round_robin_gradients": False}
    config["bf16"]["immediate_grad_update"] = False
    (tmp_path / "ds.json").write_text(json.dumps(config))
    train("2 ranks", sample_store, tmp_path / "run", *FLAGS, "--deepspeed", tmp_path / "ds.json")
    assert_same_training(figures(tmp_path / "run"), reference)
    used = json.loads((tmp_path / "run/run.json").read_text())["ds_config_resolved"]["zero_optimization"]
    assert (used["stage"], used["reduce_scatter"], used["contiguous_gradients"]) == (stage, False, False)


def test_a_config_of_megatron_trains_as_it_is(sample_store: Path, tmp_path: Path) -> None:
    """In fp16, with its old spelling of offload, and with sizes that agree with the flags."""
    (tmp_path / "ds.json").write_text(json.dumps(MEGATRON))
    flags = [*FLAGS, "--fp16", "--bf16", "none", "--deepspeed", tmp_path / "ds.json"]
    done = train("2 ranks", sample_store, tmp_path / "run", *flags, script="tests/faults/drivers/fp16_run.py")
    assert '"cpu_offload" is the old spelling of "offload_optimizer"' in done.stderr
    losses = [record["loss"] for record in records(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.1
    assert records(tmp_path / "run")[-1]["loss_scale"] == 2**8
