"""Training in emulated fp8: the same in any number of processes, close to what it is without, and not in the export."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.data.mixture import load_mixture
from pretraining.evaluation.blocks import evaluate_split
from pretraining.training.data.dataset import BlockFields
from tests.conftest import assert_one_error, needs_compiler
from tests.programs.launching import figures, records, train, try_to_train
from tests.rounding import assert_same_training, loss_rounding

pytestmark = [pytest.mark.launch, needs_compiler]

NEEDS_TORCHAO = "torchao is not installed (pip install -c requirements-extras.txt torchao)"
FP8 = ["--fp8", "--compile_layers"]
UNSAVED = ["--save_strategy", "no", "--eval_strategy", "no", "--export", "false"]


@pytest.fixture(scope="module")
def fp8_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes; a checkpoint in the middle, and samples of all lengths."""
    pytest.importorskip("torchao", reason=NEEDS_TORCHAO)
    run_dir = tmp_path_factory.mktemp("fp8") / "run"
    flags = [*FP8, "--save_steps", 3, "--eval_steps", 3, "--sample_steps", 3, "--sample_tokens", 9]
    done = train("torchrun", sample_store, run_dir, *flags, env={"TORCH_LOGS": "graph_breaks"})
    assert "raph break" not in done.output
    assert "warning: --fp8: no GPU is here, so fp8 is emulated" in done.output
    return run_dir


@pytest.mark.guarantee("FP8: two processes train like one.")
def test_two_processes_train_like_one(fp8_run: Path, sample_store: Path, tmp_path: Path) -> None:
    """A scale is that of one tensor in one micro step, and the micro steps are the same."""
    train("1 rank", sample_store, tmp_path / "run", *FP8, *UNSAVED)
    assert_same_training(figures(tmp_path / "run"), figures(fp8_run))


def test_fp8_is_close_to_what_the_weights_precision_gives(fp8_run: Path, sample_store: Path, tmp_path: Path) -> None:
    train("2 ranks", sample_store, tmp_path / "run", *UNSAVED)
    off = np.abs(np.array(figures(tmp_path / "run")) / figures(fp8_run) - 1)
    assert 1e-6 < off[:, 0].max() < 0.01
    assert 1e-4 < off[:, 1].max() < 0.1


def test_a_resumed_run_equals_one_never_stopped(fp8_run: Path, sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(fp8_run, run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    shutil.rmtree(run_dir / "model")
    train("2 ranks", sample_store, run_dir, *FP8, "--save_steps", 3, "--eval_steps", 3)
    assert figures(run_dir) == figures(fp8_run)
    model = "model/model.safetensors"
    assert (run_dir / model).read_bytes() == (fp8_run / model).read_bytes()


def test_what_is_evaluated_is_the_exported_model(fp8_run: Path, sample_store: Path) -> None:
    """A Llama like any other, which transformers opens and computes without fp8."""
    model = AutoModelForCausalLM.from_pretrained(fp8_run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(fp8_run / "model")
    mixture = load_mixture([str(sample_store)], revision=None)
    found = evaluate_split(model, tokenizer, mixture, "test", fields=BlockFields(False, False), batch_tokens=512)
    (logged,) = records(fp8_run, "test_loss")
    assert found.total["loss"] == pytest.approx(logged["test_loss"], rel=loss_rounding())


def test_it_is_another_run_without_fp8(fp8_run: Path, sample_store: Path, tmp_path: Path) -> None:
    shutil.copytree(fp8_run, tmp_path / "run")
    done = try_to_train("1 rank", sample_store, tmp_path / "run", "--max_steps", 9)
    assert_one_error(done, "--resume: product_precision differs", "it was fp8, now None")


def test_layers_that_are_not_compiled_are_refused(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("1 rank", sample_store, tmp_path / "run", "--fp8")
    assert_one_error(done, "--fp8: is slower than bf16", "use --compile_layers")


def test_odd_widths_are_refused(sample_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=NEEDS_TORCHAO)
    done = try_to_train("1 rank", sample_store, tmp_path / "run", *FP8, "--model_overrides", "intermediate_size=1000")
    assert_one_error(done, "--fp8: needs multiples of 16, and intermediate_size is 1,000")


def test_torchao_is_asked_for(sample_store: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    done = try_to_train("1 rank", sample_store, tmp_path / "run", *FP8)
    assert_one_error(done, "--fp8: needs torchao", "pip install -c requirements-extras.txt torchao")
