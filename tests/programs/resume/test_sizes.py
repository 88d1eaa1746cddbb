"""Sizes of sub-groups and messages, and the way of gradients, change neither the losses nor what can be resumed."""

import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR
from tests.programs.launching import figures, records, train
from tests.rounding import assert_same_training

pytestmark = pytest.mark.launch
FLAGS = ["--max_steps", 4, "--eval_strategy", "no", "--export", "false", "--save_steps", 2]
FLAGS += ["--per_device_train_batch_size", 4]
# So small that the tiny model has several sub-groups and messages, as large models had in earlier versions.
EARLIER = {"sub_group_size": 3000, "reduce_bucket_size": 5000, "stage3_prefetch_bucket_size": 2000}


def earlier_config(folder: Path) -> list[object]:
    config = json.loads((PROJECT_DIR / "ds_config.json").read_text())
    config["zero_optimization"] |= EARLIER | {"stage3_max_live_parameters": 1e9}
    (folder / "earlier.json").write_text(json.dumps(config))
    return ["--deepspeed", folder / "earlier.json"]


# The sizes of messages between two processes are in no checkpoint; test_every_accepted_key_trains_the_same has them.
@pytest.mark.parametrize("name", ["1 rank", pytest.param("2 ranks", marks=pytest.mark.long)])
@pytest.mark.guarantee("A checkpoint that was saved with other sub-groups and messages is resumed.")
def test_a_checkpoint_with_other_sub_groups_is_resumed(name: str, sample_store: Path, tmp_path: Path) -> None:
    earlier, resumed = (tmp_path / run for run in ("earlier", "resumed"))
    train(name, sample_store, earlier, *FLAGS, *earlier_config(tmp_path))
    train(name, sample_store, resumed, *FLAGS, "--resume", earlier / "checkpoint-2")
    assert_same_training(figures(resumed), figures(earlier))
    used = json.loads((resumed / "run.json").read_text())["ds_config_resolved"]["zero_optimization"]
    assert used["sub_group_size"] == 200_000_000


# Sums of another type than the gradients; the long ones are of the same type.
@pytest.mark.parametrize(
    "precision",
    [
        pytest.param(["--bf16", "false"], marks=pytest.mark.long),
        ["--bf16", "true"],
        pytest.param(["--bf16", "true", "--grad_accum_dtype", "bf16"], marks=pytest.mark.long),
    ],
)
@pytest.mark.guarantee("One process adds its gradients in place, with the losses of DeepSpeed's own way to the bit.")
def test_one_process_adds_gradients_as_deepspeed_does(precision: list[str], sample_store: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, *precision, "--save_strategy", "no"]
    train("1 rank", sample_store, tmp_path / "ours", *flags)
    train(
        "1 rank", sample_store, tmp_path / "theirs", *flags, script="tests/programs/drivers/deepspeed_gradients_run.py"
    )
    assert figures(tmp_path / "ours") == figures(tmp_path / "theirs")
    assert not any(record.get("grad_norm/mlp") for record in records(tmp_path / "theirs")), "they were to be unwatched"
