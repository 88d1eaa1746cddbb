"""Start training as users do, by each launcher, and read what it logged."""

import socket
import sys
from pathlib import Path

import jsonlines

from tests.conftest import PROJECT_DIR, TINY_RUN, Done, run, run_fine

NUM_STEPS = 6
BLOCKS_PER_STEP = 8
BLOCK_LENGTH = 64


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launcher(name: str) -> list[object]:
    """What a user types before pretrain.py; two processes, one with python."""
    bin_dir = Path(sys.executable).parent
    return {
        "deepspeed": ["deepspeed", f"--master_port={free_port()}", "--num_gpus=2"],
        "torchrun": ["torchrun", "--nproc_per_node=2", f"--master_port={free_port()}"],
        "mpirun": [bin_dir / "mpirun", "--allow-run-as-root", "-n", 2, sys.executable],
        "python": [sys.executable],
    }[name]


def training_flags(store: Path, run_dir: Path, *flags: object) -> list[object]:
    common = ["--dataset", store, "--output_dir", run_dir, "--global_batch_tokens", BLOCKS_PER_STEP * BLOCK_LENGTH]
    return [*TINY_RUN, *common, "--max_steps", NUM_STEPS, "--per_device_train_batch_size", 2, *flags]


def train(name: str, store: Path, run_dir: Path, *flags: object, script: str = "pretrain.py") -> Done:
    env = {"PYTHONPATH": str(PROJECT_DIR)}
    return run_fine(*launcher(name), PROJECT_DIR / script, *training_flags(store, run_dir, *flags), env=env)


def try_to_train(name: str, store: Path, run_dir: Path, *flags: object) -> Done:
    return run(*launcher(name), PROJECT_DIR / "pretrain.py", *training_flags(store, run_dir, *flags))


def records(run_dir: Path, key: str = "loss") -> list[dict]:
    with jsonlines.open(run_dir / "metrics.jsonl") as reader:
        return [record for record in reader if key in record]


def figures(run_dir: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    return [(record["loss"], record["grad_norm"]) for record in records(run_dir)]
