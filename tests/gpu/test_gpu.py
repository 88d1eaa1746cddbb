"""What only a GPU shows: bf16 through the launcher, its kernels, and memory beside the plan. `pytest -m gpu` on one."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining.system.launchers import DEEPSPEED
from pretraining.training.checkpoint.parts import host_copy
from pretraining.training.optim.optimizers import AdamWBf16
from tests.conftest import python, run, run_fine
from tests.programs.launching import figures, free_port
from tests.rounding import FP32_ROUNDOFF

HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.launch,
    pytest.mark.skipif(not HAS_GPU, reason="no GPU here"),
]

WIDE = ["hidden_size=1024", "intermediate_size=2752", "num_hidden_layers=8", "num_attention_heads=16"]
WIDE += ["num_key_value_heads=16", "max_position_embeddings=1024"]
FLAGS = ["--model", "quickstart", "--model_overrides", *WIDE, "--per_device_train_batch_size", 4, "--report", "false"]
FLAGS += ["--dataset", "synthetic", "--block_length", 1024, "--vocab_size", 32000, "--global_batch_tokens", 8192]
FLAGS += ["--max_steps", 6, "--warmup_steps", 2, "--learning_rate", "1e-3", "--logging_steps", 1]
UNSAVED = ["--save_strategy", "no", "--eval_strategy", "no", "--export", "false"]
KERNELS = {
    "compiled": ["--compile_layers"],
    "compiled, and computed again": ["--compile_layers", "--activation_checkpointing"],
    "loss in tiles": ["--loss_tiles", 4],
    "loss and layers in tiles": ["--loss_tiles", 4, "--mlp_tiles", 4],
    "optimizer in host memory": ["--deepspeed", "ds_config_offload_optimizer.json"],
    "optimizer and weights in host memory": ["--deepspeed", "ds_config_offload.json"],
    "liger": ["--use_liger_kernel", "true"],
    "fp8": ["--compile_layers", "--fp8"],
}
PACKAGES = {"liger": "liger_kernel", "fp8": "torchao"}


def on_the_gpu(run_dir: Path, *flags: object) -> str:
    """A run on one GPU, as a user starts it; gives what it said on stdout."""
    launcher = [*DEEPSPEED, f"--master_port={free_port()}", "--num_gpus=1"]
    words = [*launcher, "pretrain.py", *FLAGS, "--output_dir", run_dir, *flags]
    return run_fine(*words, timeout=500, env={"DS_ACCELERATOR": "cuda" if HAS_GPU else "cpu"}).stdout


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("gpu") / "run"
    on_the_gpu(run_dir, "--save_steps", 3, "--eval_strategy", "no")
    return run_dir


def test_a_resumed_run_goes_on_as_one_never_stopped(plain_run: Path, tmp_path: Path) -> None:
    """Not to the bit: some kernels add in the order in which their blocks happen to end."""
    run_dir = tmp_path / "run"
    shutil.copytree(plain_run, run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    shutil.rmtree(run_dir / "model")
    on_the_gpu(run_dir, "--save_steps", 3, "--eval_strategy", "no")
    np.testing.assert_allclose(figures(run_dir), figures(plain_run), rtol=1e-3)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.guarantee(
    "On a GPU (not yet run: compiled alone, loss in tiles alone, fp8): each kernel trains like the plain one."
)
def test_each_way_to_compute_trains_the_same(name: str, plain_run: Path, tmp_path: Path) -> None:
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install -c requirements-extras.txt {package.replace('_', '-')})")
    on_the_gpu(tmp_path / "run", *UNSAVED, *KERNELS[name])
    ours, plain = (np.array(figures(run_dir)) for run_dir in (tmp_path / "run", plain_run))
    np.testing.assert_allclose(ours[0, 0], plain[0, 0], rtol=1e-3)
    np.testing.assert_allclose(ours[:, 0], plain[:, 0], rtol=2e-2)


@pytest.mark.parametrize("flags", [[], ["--activation_checkpointing"], ["--compile_layers"]], ids=str)
@pytest.mark.guarantee("On a GPU: memory is within 10 % of the plan.")
def test_memory_is_what_was_planned(flags: list[str], tmp_path: Path) -> None:
    said = on_the_gpu(tmp_path / "run", *flags, "--profile_plan")
    rows = {line[2:32].strip(): line[32:].split() for line in said.splitlines() if line.startswith("  ")}
    planned, measured = (float(word.replace(",", "")) for word in rows["allocated at most per GPU, GB"])
    assert planned == pytest.approx(measured, rel=0.1)


def test_the_exported_model_continues_a_text(sample_store: Path, tmp_path: Path) -> None:
    words = ["--dataset", sample_store, "--block_length", 64, "--global_batch_tokens", 512, "--eval_strategy", "no"]
    on_the_gpu(tmp_path / "run", *words, "--model_overrides", "max_position_embeddings=128")
    env = {"DS_ACCELERATOR": "cuda" if HAS_GPU else "cpu"}
    words = ["--model", tmp_path / "run", "--prompt", "The council", "--max_new_tokens", 8, "--greedy"]
    assert run_fine(*python("generate.py", *words), env=env).stdout.startswith("The council")


@pytest.mark.guarantee("On a GPU (not yet run to its end): masked documents train the same with and without a mask.")
def test_masked_documents_train_the_same_with_and_without_a_mask(sample_store: Path, tmp_path: Path) -> None:
    """sdpa takes the kernel of documents there, eager attention the mask."""
    words = ["--dataset", sample_store, "--block_length", 64, "--global_batch_tokens", 512, "--document_masking"]
    words += ["--model_overrides", *WIDE]
    for attention in ("sdpa", "eager"):
        on_the_gpu(tmp_path / attention, *words, *UNSAVED, "--attention_implementation", attention)
    ours, theirs = (np.array(figures(tmp_path / attention)) for attention in ("sdpa", "eager"))
    np.testing.assert_allclose(ours[0, 0], theirs[0, 0], rtol=1e-3)
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], rtol=2e-2)


def test_a_profiled_step_has_the_kernels_of_the_gpu(tmp_path: Path) -> None:
    on_the_gpu(tmp_path / "run", *UNSAVED, "--profile", 4)
    costs = (tmp_path / "run/profile/costs-step-4.txt").read_text()
    assert "Self CUDA" in costs
    attention = json.loads((tmp_path / "run/run.json").read_text())["attention"]
    assert attention["kernel"] in ("cudnn_attention", "flash_attention")
    assert attention["cudnn"] is not None


def test_memory_that_runs_out_leaves_a_snapshot(tmp_path: Path) -> None:
    launcher = [*DEEPSPEED, f"--master_port={free_port()}", "--num_gpus=1"]
    too_large = ["--per_device_train_batch_size", 1024, "--global_batch_tokens", 1024 * 1024, "--max_steps", 1]
    words = [*launcher, "pretrain.py", *FLAGS, *UNSAVED, *too_large, "--force", "--profile", 1]
    done = run(*words, "--output_dir", tmp_path / "run", env={"DS_ACCELERATOR": "cuda"})
    assert done.returncode != 0
    path = tmp_path / "run/profile/memory-rank-0.pickle"
    assert f"out of memory: {path} has all allocations" in done.stderr
    assert path.stat().st_size > 1000


def test_a_copy_through_pinned_buffers_is_the_same() -> None:
    values = torch.randn(200_000_000, device="cuda")  # 800 MB: four times a buffer, with a rest
    copied = host_copy({"moments": [values]})["moments"][0]
    expected = values.cpu()
    values.zero_()
    assert torch.equal(copied, expected)


def test_bf16_moments_are_updated_the_same_by_one_kernel() -> None:
    """As in the unit test on the CPU: 4 roundoffs of fp32 a step for a weight of at most 1."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 1000, device=device)) for device in ("cpu", "cuda")]
    optimizers = [AdamWBf16([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) for weight in weights]
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = gradient.to(weight.device)
        optimizer.step()
    torch.testing.assert_close(weights[1].cpu(), weights[0], rtol=0, atol=4 * FP32_ROUNDOFF)
