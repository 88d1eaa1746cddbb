"""What the tests of several tools share: a trained run with two checkpoints."""

from pathlib import Path

import pytest

from tests.programs.launching import train


@pytest.fixture(scope="session")
def trained_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in fp32, with the checkpoints of two steps and the figures of its test split."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train("1 rank", sample_store, run_dir, "--save_steps", 3, "--eval_strategy", "no")
    return run_dir
