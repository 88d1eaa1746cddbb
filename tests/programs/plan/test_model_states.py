"""The planned bytes of weights, gradients and optimizer are those that DeepSpeed allocates, to the byte."""

import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR
from tests.programs.launching import try_to_train

pytestmark = pytest.mark.launch

# Embeddings, norms and MLPs of sizes that neither 2 nor 3 divide; the norms are small enough to stay whole.
ODD_SIZES = ["hidden_size=35", "intermediate_size=61", "num_hidden_layers=2", "num_attention_heads=5"]
ODD_SIZES += ["num_key_value_heads=1", "head_dim=12", "max_position_embeddings=128", "vocab_size=8195"]
SCRIPT = "tests/programs/drivers/model_states_run.py"


def small_sub_groups(folder: Path, name: str) -> Path:
    """A config of this project with sub-groups of few weights, so that there are several."""
    config = json.loads((PROJECT_DIR / name).read_text())
    config["zero_optimization"]["sub_group_size"] = 5000
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def run_states(num_ranks: int, store: Path, run_dir: Path, *flags: object, env: dict[str, str] | None = None) -> list:
    """What each rank of a run of three micro steps wrote."""
    words = ["--model_overrides", *ODD_SIZES, "--global_batch_tokens", 64 * 3 * num_ranks]
    words += ["--per_device_train_batch_size", 1, "--max_steps", 2, "--eval_strategy", "no", "--save_strategy", "no"]
    name = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
    done = try_to_train(name, store, run_dir, *words, *flags, script=SCRIPT, env=env)
    assert done.returncode == 0, done.output[-3000:]
    return [json.loads((run_dir / f"model_states-{rank}.json").read_text()) for rank in range(num_ranks)]


def check_sent(found: dict) -> None:
    """Compare the counted messages with the plan, but for the few bytes of norms, losses and flags."""
    planned, sent = found["planned_sent"], {int(size): count for size, count in found["sent"].items()}
    assert sum(sent.values()) == pytest.approx(planned["to_all"] + planned["to_local"], rel=1e-9)
    assert sent.get(2, 0) * bool(planned["to_local"]) == pytest.approx(planned["to_local"], rel=1e-9)


@pytest.mark.parametrize(
    ("num_ranks", "ds_config", "flags"),
    [
        (1, "ds_config.json", ["--bf16", "true"]),
        pytest.param(
            *(2, "ds_config.json", ["--bf16", "true", "--grad_accum_dtype", "bf16", "--optim", "adamw_bf16"]),
            marks=pytest.mark.long,
        ),
        (3, "ds_config.json", ["--bf16", "false", "--optim", "muon"]),
        pytest.param(*(2, "ds_config_offload_optimizer.json", ["--bf16", "false"]), marks=pytest.mark.long),
        pytest.param(
            *(3, "ds_config_offload.json", ["--bf16", "true", "--optim", "adamw_bf16"]), marks=pytest.mark.long
        ),
        pytest.param(*(1, "ds_config_offload.json", ["--bf16", "true", "--optim", "muon"]), marks=pytest.mark.long),
    ],
)
@pytest.mark.guarantee(
    "Planned bytes of weights, gradients and optimizer are what DeepSpeed allocates on every rank, to the byte."
)
def test_the_planned_bytes_are_allocated(
    num_ranks: int, ds_config: str, flags: list[str], sample_store: Path, tmp_path: Path
) -> None:
    path = small_sub_groups(tmp_path, ds_config)
    for found in run_states(num_ranks, sample_store, tmp_path / "run", "--deepspeed", path, *flags):
        if num_ranks == 1:  # a GPU has copies of parameters in host memory; here both are one memory
            found["planned"]["whole_weights"] = 0
        assert found["allocated"] == found["planned"]
        assert found["bucket"] == [found["planned_bucket"]]
        if "muon" not in flags and "offload" not in ds_config:
            check_sent(found)


def hpz_config(folder: Path) -> Path:
    """The hpZ config of this project, which gathers each weight for forward and again for backward."""
    config = json.loads((PROJECT_DIR / "ds_config_hpz.json").read_text())
    config["zero_optimization"] |= {"stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 0}
    path = folder / "hpz.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.guarantee("With hpZ each machine has a second copy of the weights, of the planned bytes, and gathers it.")
def test_the_second_copy_of_hpz_is_allocated_and_used(sample_store: Path, tmp_path: Path) -> None:
    two_machines = {"LOCAL_SIZE": "2"}  # as deepspeed tells the four processes of two machines
    flags = ["--deepspeed", hpz_config(tmp_path), "--bf16", "true"]
    for found in run_states(4, sample_store, tmp_path / "run", *flags, env=two_machines):
        assert found["planned"]["second_copy"] > 0
        assert found["allocated"] == found["planned"]
        assert found["planned_sent"]["to_local"] > found["planned_sent"]["to_all"] / 4
        check_sent(found)


@pytest.mark.parametrize(
    ("num_ranks", "ds_config", "flags"),
    [
        pytest.param(*(3, "ds_config_zero1.json", ["--bf16", "true"]), marks=pytest.mark.long),
        pytest.param(
            *(2, "ds_config_zero1.json", ["--bf16", "false", "--optim", "adamw_bf16"]), marks=pytest.mark.long
        ),
        (3, "ds_config_zero2.json", ["--bf16", "true"]),
        pytest.param(*(3, "ds_config_zero2.json", ["--bf16", "false"]), marks=pytest.mark.long),
        pytest.param(
            *(3, "ds_config_zero2_offload_optimizer.json", ["--bf16", "true", "--grad_accum_dtype", "fp32"]),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(2, "ds_config_zero1_offload_optimizer.json", ["--bf16", "true", "--grad_accum_dtype", "fp32"]),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(2, "ds_config_zero2_offload_optimizer.json", ["--bf16", "true", "--grad_accum_dtype", "bf16"]),
            marks=pytest.mark.long,
        ),
    ],
)
@pytest.mark.guarantee(
    "Planned bytes of ZeRO-1 and ZeRO-2 are what DeepSpeed allocates, to the byte, and sends in a step."
)
def test_the_planned_bytes_of_stages_1_and_2_are_allocated_and_sent(
    num_ranks: int, ds_config: str, flags: list[str], sample_store: Path, tmp_path: Path
) -> None:
    ranks = run_states(num_ranks, sample_store, tmp_path / "run", "--deepspeed", PROJECT_DIR / ds_config, *flags)
    most = {name: max(found["allocated"][name] for found in ranks) for name in ranks[0]["allocated"]}
    assert most == ranks[0]["planned"]  # only gradients that are kept whole differ between ranks
    for found in ranks:
        assert found["bucket"] == [found["planned_bucket"]]
        check_sent(found)
