"""What --model means: an exported model, the run that has it, or one of the Hub, of which no pickle is read."""

import shutil
import sys
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.finetuning.inputs import BaseModel, find_base_model
from tests.conftest import assert_one_error, run, run_fine
from tests.fakes.exported import export_random_model
from tests.fakes.hub import local_hub

SCRIPT = """
import sys
from pretraining.cli.program import run_program
from pretraining.finetuning.inputs import find_base_model
run_program(lambda argv: print(*vars(find_base_model(argv[0])).values(), sep='\\n'))
"""


@pytest.fixture
def model(sample_store: Path, tmp_path: Path) -> Path:
    return export_random_model(tmp_path / "run/model", sample_store)


def test_a_run_folder_has_its_model(model: Path) -> None:
    (model.parent / "run.json").write_text("{}")
    expected = BaseModel(model, str(model), "run-finetuned")
    assert find_base_model(str(model)) == find_base_model(str(model.parent)) == expected
    shutil.rmtree(model)
    with pytest.raises(UserError, match=r"not an exported model .*; use RUN/model, or export a checkpoint"):
        find_base_model(str(model.parent))


def test_a_model_comes_from_the_hub_without_pickles(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    with local_hub({"someone/tiny": model}, tmp_path / "cache") as env:
        folder, name, run_name = run_fine(sys.executable, "-c", SCRIPT, "someone/tiny", env=env).stdout.splitlines()
        nothing = run(sys.executable, "-c", SCRIPT, "someone/nothing", env=env)
    names = {path.name for path in Path(folder).iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert "pytorch_model.bin" not in names
    assert (name, run_name) == (f"someone/tiny at {Path(folder).name[:12]}", "tiny-finetuned")
    assert_one_error(nothing, "--model someone/nothing: not a folder, and not found on the Hub")
