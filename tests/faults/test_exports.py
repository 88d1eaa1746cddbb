"""Exports that go wrong: each is found, told in a line, and takes nothing with it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pretraining.runs.checksums import incomplete_reason
from tests.conftest import TINY_MODEL, Done, assert_one_error
from tests.programs.launching import NUM_STEPS, figures, train, try_to_train

pytestmark = pytest.mark.launch

FAULTS = {
    "transposed": "step-1.partial: differs from the model in training: its loss on a block is ",
    "changed": "step-2.partial: differs from the model in training: its loss on a block is ",
    "untied": "step-3.partial: differs from the model in training: its loss on a block is ",
    "bit": "step-4.partial: differs from the model in training: model.layers.0.self_attn.q_proj.weight has other bytes",
    "theta": "step-5.partial: differs from the model in training: its ",  # loss, or config, where it does not show yet
    "old_theta": "step-6.partial: differs from the model in training: its config.json differs in rope_theta",
    "full": "step-7: cannot be written (No space left on device)",
    "none": "exported model: ",
}
STEPS = len(FAULTS)
FLAGS = ["--max_steps", STEPS, "--save_steps", STEPS, "--eval_strategy", "no", "--export_every_tokens", 512]
FLAGS += ["--model_overrides", *TINY_MODEL, "tie_word_embeddings=true"]
FLAGS += ["--loss_tiles", 3, "--mlp_tiles", 5, "--document_masking"]


def train_with_faults(num_ranks: int, store: Path, run_dir: Path, *faults: str) -> Done:
    words = {"script": "tests/faults/drivers/faulty_exports.py", "env": {"FAULTS": ",".join(faults)}}
    ranks = f"{num_ranks} rank" + "s" * (num_ranks != 1)
    return try_to_train(ranks, store, run_dir, *FLAGS, "--sequence_parallel_size", num_ranks, **words)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Whatever is exported by two ranks in any other test is compared in the same way, and is the model.
@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.guarantee(
    "An export that is not the trained model is detected: a changed or transposed weight, wrong positions, lost ties."
)
def test_an_export_that_is_not_the_model_is_found(num_ranks: int, sample_store: Path, tmp_path: Path) -> None:
    """On the way the run goes on; at the end it fails, and what was exported before stays."""
    run_dir = tmp_path / "run"
    done = train_with_faults(num_ranks, sample_store, run_dir, *FAULTS, "checkpoint", "none")
    assert done.returncode == 0, done.output[-3000:]
    for message in FAULTS.values():
        assert message in done.stderr
    assert done.stderr.count("export failed; training continues") == STEPS - 1
    finished = [path.name for path in (run_dir / "exports").iterdir() if path.suffix != ".partial"]
    assert finished == [f"step-{STEPS}"]
    assert not (run_dir / "exports/step-7.partial").exists(), "it would keep the disk full"
    assert len(figures(run_dir)) == STEPS

    model = contents(run_dir / "model")
    done = train_with_faults(num_ranks, sample_store, run_dir, "transposed")
    assert_one_error(
        done,
        "model.partial: differs from the model in training: its loss on a block is",
        "in training it is",
        f"{run_dir}/checkpoint-{STEPS} is complete; rerun the command to export again",
    )
    assert done.returncode == 2
    assert contents(run_dir / "model") == model
    assert (run_dir / "model.partial/model.safetensors").is_file()
    assert incomplete_reason(run_dir / f"checkpoint-{STEPS}") is None


@pytest.mark.long  # on the way, and another error at the end: test_an_export_that_is_not_the_model_is_found
def test_a_disk_that_is_full_at_the_export(sample_store: Path, small_disk: Path) -> None:
    """A finished run exports again, here onto a disk on which its model had room and has none any more."""
    run_dir = small_disk / "run"
    subprocess.run(["mount", "-o", "remount,size=90m", str(small_disk)], check=True)
    flags = ["--save_steps", NUM_STEPS, "--eval_strategy", "no"]
    train("2 ranks", sample_store, run_dir, *flags)
    shutil.rmtree(run_dir / "model")
    used = shutil.disk_usage(small_disk).used
    subprocess.run(["mount", "-o", f"remount,size={used + 1_000_000}", str(small_disk)], check=True)
    done = try_to_train("2 ranks", sample_store, run_dir, *flags)
    assert_one_error(
        done,
        f"{run_dir}/model: cannot be written (",
        "o space left",
        f"{run_dir}/checkpoint-{NUM_STEPS} is complete; rerun the command to export again",
    )
    assert incomplete_reason(run_dir / f"checkpoint-{NUM_STEPS}") is None
    assert not list(run_dir.glob("model*"))
