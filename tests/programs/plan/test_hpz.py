"""hpZ trains as plain ZeRO-3 to the bit: the same weights, gathered from a second copy on each machine."""

import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR
from tests.fakes.exported import export_random_model
from tests.programs.launching import SEARCH_PATH, events, figures, records, run_preloaded, train, try_to_train

pytestmark = pytest.mark.launch
# Four processes of two machines, as deepspeed tells them; two micro steps each, and an evaluation between steps.
TWO_MACHINES = {"LOCAL_SIZE": "2"}
FLAGS = ["--per_device_train_batch_size", 1, "--eval_steps", 2, "--save_steps", 2, "--bf16", "true", "--max_steps", 4]
# Each weight is gathered for forward and again for backward, norms too.
ALWAYS_GATHERED = {"stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 0}
ALWAYS_GATHERED |= {"stage3_param_persistence_threshold": 0}


def config(folder: Path, name: str) -> Path:
    content = json.loads((PROJECT_DIR / name).read_text())
    content["zero_optimization"] |= ALWAYS_GATHERED
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def losses(run_dir: Path) -> list[object]:
    """Loss and gradient norm of each step, and the evaluations of every second one."""
    evaluated = {record["step"]: record["eval_loss"] for record in records(run_dir, "eval_loss")}
    return [figures(run_dir), {step: loss for step, loss in evaluated.items() if step % 2 == 0}]


@pytest.mark.guarantee("hpZ trains to the bit as plain ZeRO-3: losses, evaluations, exported weights, and resumed.")
@pytest.mark.guarantee("With hpZ, training starts from the values of --weights, not from the copy before they came.")
def test_hpz_starts_from_weights_trains_and_resumes_as_zero_3(sample_store: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64}
    parent = export_random_model(tmp_path / "parent", sample_store, **shape)  # type: ignore[arg-type]
    flags = [*FLAGS, "--weights", parent, "--dataset", sample_store, "--global_batch_tokens", 512, "--report", "false"]
    flags += ["--warmup_steps", 0, "--schedule_steps", 2]
    flags += ["--per_device_eval_batch_size", 16]  # evaluations, which gather each weight for every batch, take half
    for name, num_steps, saves in (
        ("ds_config.json", 2, "no"),
        ("ds_config_hpz.json", 1, "steps"),
        ("ds_config_hpz.json", 2, "no"),
    ):
        words = [PROJECT_DIR / "pretrain.py", *flags, "--deepspeed", config(tmp_path, name), "--max_steps", num_steps]
        words += ["--output_dir", tmp_path / name[:-5], "--save_strategy", saves, "--save_steps", 1]
        done = run_preloaded(4, words, {"PYTHONPATH": SEARCH_PATH, **TWO_MACHINES})
        assert done.returncode == 0, done.output[-4000:]
        assert ("equal to that of its files" in done.stderr) == (events(tmp_path / name[:-5], "start")[-1]["step"] == 0)
    assert_same_runs(tmp_path / "ds_config_hpz", tmp_path / "ds_config")


@pytest.mark.long  # of a run from the weights of a model, that one resumes the other aside: the test above
def test_hpz_trains_as_zero_3_which_resumes_it(sample_store: Path, tmp_path: Path) -> None:
    plain, hpz = config(tmp_path, "ds_config.json"), config(tmp_path, "ds_config_hpz.json")
    train("4 ranks", sample_store, tmp_path / "plain", *FLAGS, "--deepspeed", plain)
    for ds_config, num_steps in ((hpz, 2), (hpz, 3), (plain, 4)):  # two resumes, the last one without hpZ
        flags = [*FLAGS, "--deepspeed", ds_config, "--max_steps", num_steps, "--schedule_steps", 4]
        train("4 ranks", sample_store, tmp_path / "hpz", *flags, env=TWO_MACHINES)
    assert_same_runs(tmp_path / "hpz", tmp_path / "plain")


def assert_same_runs(ours: Path, theirs: Path) -> None:
    assert losses(ours) == losses(theirs)
    exported = [(run_dir / "model/model.safetensors").read_bytes() for run_dir in (ours, theirs)]
    assert exported[0] == exported[1]


def test_hpz_is_refused_where_it_is_of_no_use(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", "--deepspeed", PROJECT_DIR / "ds_config_hpz.json")
    assert done.returncode != 0
    assert "zero_hpz_partition_size auto: needs several machines, on one it only costs memory" in done.stderr
    assert "Traceback" not in done.output
