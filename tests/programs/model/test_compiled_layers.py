"""Runs with compiled layers: they train the same, in one graph under ZeRO-3, and are resumed to the bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Done, needs_compiler
from tests.programs.launching import figures, group_norms, train
from tests.rounding import assert_same_training, norm_rounding

pytestmark = [pytest.mark.launch, needs_compiler]

UNSAVED = ["--eval_strategy", "no", "--export", "false", "--save_strategy", "no"]
SYNTHETIC = [*UNSAVED, "--block_length", 64, "--vocab_size", 512, "--max_steps", 2]
# Texts of all lengths.
COMPILED = ["--activation_checkpointing", "--sample_steps", 3, "--sample_tokens", 5]
COMPILED += ["--save_steps", 3, "--eval_strategy", "no", "--export", "false"]


def assert_same_run(run_dir: Path, other: Path, *, num_steps: int) -> None:
    assert len(figures(run_dir)) == num_steps
    assert_same_training(figures(run_dir), figures(other))
    np.testing.assert_allclose(group_norms(run_dir), group_norms(other), rtol=norm_rounding())


@pytest.mark.guarantee("Compiled layers train the same, in one graph under ZeRO-3.")
def test_compiled_layers_train_the_same_in_one_graph(tmp_path: Path) -> None:
    """What torch traces; the kernels that its compiler writes for it, which take a minute, are in the next test."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    train("1 rank", "synthetic", plain, *SYNTHETIC)
    script = "tests/programs/model/traced_run.py"
    done = train("2 ranks", "synthetic", compiled, *SYNTHETIC, "--compile_layers", script=script)
    assert_same_run(compiled, plain, num_steps=2)
    assert done.output.count("a traced graph") == 2, "one graph in each process, which both layers have"
    assert "raph break" not in done.output


@pytest.fixture(scope="module")
def compiled_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Two processes with compiled layers, and what they logged.

    Their compiler's cache, a new one, lies beside the run: what one of them has compiled the other takes from there.
    """
    run_dir = tmp_path_factory.mktemp("compiled") / "run"
    return run_dir, train("2 ranks", sample_store, run_dir, "--compile_layers", *COMPILED, env=compiler_env(run_dir))


def compiler_env(run_dir: Path) -> dict[str, str]:
    return {"TORCH_LOGS": "graph_breaks,recompiles", "TORCHINDUCTOR_CACHE_DIR": str(run_dir.parent / "compiler")}


@pytest.mark.long  # held by the test above
@pytest.mark.guarantee("Compiled layers train the same, in one graph under ZeRO-3.")
def test_compiled_kernels_train_the_same_in_one_graph(
    compiled_run: tuple[Path, Done], sample_store: Path, tmp_path: Path
) -> None:
    run_dir, done = compiled_run
    train("2 ranks", sample_store, tmp_path / "plain", *UNSAVED)
    assert_same_run(run_dir, tmp_path / "plain", num_steps=6)
    assert list((run_dir.parent / "compiler").rglob("*.so")), "nothing was compiled"
    assert "raph break" not in done.output
    assert "size mismatch" not in done.output, "recompiled for a text"


@pytest.mark.long  # that a resumed run is compiled as it was started: tests/unit/training/model/test_compile.py
def test_a_resumed_run_keeps_its_compiled_layers_to_the_bit(
    compiled_run: tuple[Path, Done], sample_store: Path, tmp_path: Path
) -> None:
    """Without the flag: a run this short is not compiled by default, and what is not compiled rounds in another way."""
    run_dir, _ = compiled_run
    resumed = shutil.copytree(run_dir, tmp_path / "resumed")
    words = [*COMPILED, "--resume", resumed / "checkpoint-3"]
    done = train("2 ranks", sample_store, resumed, *words, env=compiler_env(run_dir))
    assert "layers: compiled (as the run was started)" in done.output
    assert figures(resumed) == figures(run_dir)
    assert json.loads((resumed / "run.json").read_text())["arguments"]["compile_layers"] is True
