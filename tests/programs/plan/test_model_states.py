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


@pytest.mark.parametrize(
    ("num_ranks", "ds_config", "flags"),
    [
        (1, "ds_config.json", ["--bf16", "true"]),
        (2, "ds_config.json", ["--bf16", "true", "--grad_accum_dtype", "bf16", "--optim", "adamw_bf16"]),
        (3, "ds_config.json", ["--bf16", "false", "--optim", "muon"]),
        (2, "ds_config_offload_optimizer.json", ["--bf16", "false"]),
        (3, "ds_config_offload.json", ["--bf16", "true", "--optim", "adamw_bf16"]),
        (1, "ds_config_offload.json", ["--bf16", "true", "--optim", "muon"]),
    ],
)
@pytest.mark.guarantee(
    "Planned bytes of weights, gradients and optimizer are what DeepSpeed allocates on every rank, to the byte."
)
def test_the_planned_bytes_are_allocated(
    num_ranks: int, ds_config: str, flags: list[str], sample_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ["--deepspeed", small_sub_groups(tmp_path, ds_config), "--model_overrides", *ODD_SIZES]
    words += ["--global_batch_tokens", 64 * 6, "--per_device_train_batch_size", 1, "--max_steps", 2]
    words += ["--eval_strategy", "no", "--save_strategy", "no"]
    name = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
    done = try_to_train(name, sample_store, run_dir, *words, *flags, script=SCRIPT)
    assert done.returncode == 0, done.output[-3000:]
    for rank in range(num_ranks):
        found = json.loads((run_dir / f"model_states-{rank}.json").read_text())
        if num_ranks == 1:  # a GPU has copies of parameters in host memory; here both are one memory
            found["planned"]["whole_weights"] = 0
        assert found["allocated"] == found["planned"], rank
        assert found["bucket"] == [found["planned_bucket"]]
