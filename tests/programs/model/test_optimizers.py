"""Whole runs with each optimizer: a resume equals no stop, in one process as in two; Muon equals torch's."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROJECT_DIR, assert_one_error
from tests.programs.launching import BLOCKS_PER_STEP, NUM_STEPS, figures, run_forked_fine, train, try_to_train
from tests.rounding import BF16_ROUNDOFF, loss_rounding, norm_rounding

pytestmark = pytest.mark.launch
OFFLOAD = ["--deepspeed", PROJECT_DIR / "ds_config_offload.json"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.mark.parametrize("name", ["adamw_bf16", "muon", pytest.param("adamw_8bit", marks=needs_bitsandbytes)])
@pytest.mark.guarantee("Each optimizer resumes bit by bit; Muon equals torch's.")
def test_each_optimizer_learns_and_resumes_to_the_bit(name: str, sample_store: Path, tmp_path: Path) -> None:
    whole, resumed, other = (tmp_path / folder for folder in ("whole", "resumed", "other"))
    optim = ["--optim", name, "--eval_strategy", "no", "--lr_scheduler_type", "constant", "--warmup_steps", 0]
    optim += ["--export", str(name == "muon").lower(), "--per_device_train_batch_size", 4]
    script = "tests/programs/drivers/instrumented_run.py" if name == "muon" else "pretrain.py"
    # How adamw_bf16 rounds depends on no other number of a tensor; Muon's matrices and the 8-bit blocks are divided.
    ranks, other_ranks = ("1 rank", "2 ranks") if name == "adamw_bf16" else ("2 ranks", "1 rank")
    train(ranks, sample_store, whole, *optim, "--save_steps", 3, script=script)
    losses = [loss for loss, _ in figures(whole)]
    assert losses[-1] < losses[0] - 0.2

    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-6")
    train(ranks, sample_store, resumed, *optim)
    assert figures(resumed) == figures(whole)

    flags = [*optim, "--save_strategy", "no", *OFFLOAD]
    go_on = ["--resume", whole / "checkpoint-3"]
    if name == "adamw_8bit":  # its blocks of 256 numbers would begin elsewhere
        done = try_to_train(other_ranks, sample_store, other, *flags, *go_on)
        assert_one_error(done, "its optimizer state", "cannot be divided among others; start with --num_gpus=2")
        go_on = []
    train(other_ranks, sample_store, other, *flags, *go_on)
    if name == "muon":
        assert_same_movement(other / "model", whole / "model", whole)
        assert_equal_to_torch(whole, sample_store, tmp_path)
    else:
        assert_same_training(figures(other), figures(whole))


def assert_equal_to_torch(whole: Path, store: Path, output_dir: Path) -> None:
    """The same weights trained by torch's Muon and AdamW, in one process without DeepSpeed."""
    config = json.dumps(json.loads((whole / "run.json").read_text())["identity"]["model_config"])
    script = PROJECT_DIR / "tests/programs/drivers/plain_run.py"
    words = [whole / "first_weights.pt", config, store, output_dir, BLOCKS_PER_STEP, NUM_STEPS, "muon"]
    run_forked_fine(sys.executable, script, *words)
    assert_same_movement(whole / "model", output_dir, whole)
    record = json.loads((output_dir / "records.json").read_text())[0]
    np.testing.assert_allclose(figures(whole)[0], (record["loss"], record["grad_norm"]), rtol=norm_rounding())


def assert_same_movement(ours: Path, theirs: Path, whole: Path) -> None:
    """Six updates lead Muon's matrices from the first weights of `whole` to the same ones, but for 2 % of the way.

    Muon rounds to bf16 15 times, once per product of its five iterations. A number that is turned at the start, as one
    in 780 of those that differ by 5e-6 is, turns others in each product after it. So two updates differ by the rounding
    itself: 2^-8 / sqrt(12) = 1.1e-3 of a number in each, 1.1e-3 * sqrt(2 * 15) = 0.6 % together, and three times that
    where singular values are small, which an iteration multiplies by 3.4. Those of six updates are independent, and so
    are a smaller share of the way than of an update. A momentum of 0.9 instead of 0.95 leads 6 % elsewhere, no weight
    decay 7 %, four iterations 19 %.
    """
    first = torch.load(whole / "first_weights.pt")
    matrices = [name for name, weight in first.items() if ".layers." in name and weight.ndim == 2]
    ways = []
    for folder in (ours, theirs):
        last = load_file(folder / "model.safetensors")
        ways.append(torch.cat([(last[name] - first[name]).flatten().double() for name in matrices]))
    assert (ways[0] - ways[1]).norm() <= 0.02 * ways[1].norm()


def assert_same_training(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> None:
    """adamw_bf16 rounds its moments to bf16.

    Of numbers that differ by 5e-6 (the square root of the terms in tests/rounding.py), one in 2^-8 / 5e-6 = 780 falls
    on the other side and moves by 2^-8: together 2^-8 / sqrt(780) = 1.4e-4 of an update, in each of six steps.
    """
    losses, norms = (np.array(ours) / np.array(theirs)).T
    np.testing.assert_allclose(losses, 1, rtol=loss_rounding())
    np.testing.assert_allclose(norms, 1, rtol=NUM_STEPS * BF16_ROUNDOFF / 780**0.5)
