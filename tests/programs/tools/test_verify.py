"""tools.verify finds each damage of each kind by name, and nothing where there is none."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretraining.errors import UserError
from tests.conftest import run
from tests.unit.training.data.test_dataset import forge
from tools.verify import findings, verify

TOOL = [sys.executable, "-m", "tools.verify"]


def flip(path: Path, place: float = 0.5) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def problems(folder: Path) -> dict[str, list[str]]:
    """What is wrong, by the name of what was checked."""
    return {finding.folder.name: finding.problems for finding in findings(folder)}


@pytest.fixture
def store(sample_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(sample_store, tmp_path / "blocks")
    return tmp_path / "blocks"


@pytest.fixture
def run_dir(trained_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


STORE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "data/train-00000-of-00001.parquet": (flip, "is damaged: its SHA-256 is"),
    "documents/documents-00000-of-00001.parquet": (flip, "is damaged: its SHA-256 is"),
    "data/test-00000-of-00001.parquet": (lambda path: path.unlink(), "is missing"),
    "data/train-00001-of-00002.parquet": (lambda path: path.write_bytes(b"PAR1"), "is extra"),
    "tokenizer/tokenizer.json": (lambda path: flip(path, 0.99), "is damaged: its SHA-256 is"),
    "tokenizer/evil.py": (lambda path: path.write_text("1"), "is extra"),
}


def test_each_damage_of_a_block_store_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(store)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(str(store))
    assert "ok: 4 shards and the tokenizer by SHA-256; 787 blocks, ids < 8,192" in line
    for name, (damage, _) in STORE_DAMAGES.items():
        damage(store / name)
    found = problems(store)["blocks"]
    assert len(found) == len(STORE_DAMAGES)
    for name, (_, words) in STORE_DAMAGES.items():
        assert any(f"{store / name} {words}" in problem for problem in found), (name, found)
    done = run(*TOOL, store)
    assert (done.returncode, done.stderr) == (2, "")
    assert f"NOT AS IT WAS WRITTEN: {len(found)}" in done.stdout


def test_what_its_checksum_hides_is_found(sample_store: Path, tmp_path: Path) -> None:
    store = forge(sample_store, tmp_path / "forged", [7], 9000, hashed=True)
    assert problems(store)["forged"] == [
        "data/train-00000-of-00001.parquet row 7 has the token id 9,000, the vocabulary has 8,192"
    ]
    manifest = store / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_blocks": 701', '"num_blocks": 700'))
    (problem,) = problems(store)["forged"]
    assert "tokens of train do not add up" in problem


def test_each_damage_of_a_run_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(run_dir)
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in lines] == ["checkpoint-3", "checkpoint-6", "model"]
    assert "no checksums are recorded for exported models" in lines[2]
    first, last, model = (run_dir / name for name in ("checkpoint-3", "checkpoint-6", "model"))
    shard = next(first.rglob("*_optim_states.pt"))
    flip(shard)
    (first / "scheduler.pt").unlink()
    (first / "more").write_text("x")
    (last / "complete.json").unlink()
    weights = model / "model.safetensors"
    length = int.from_bytes(weights.read_bytes()[:8], "little")
    header = json.loads(weights.read_bytes()[8 : 8 + length])
    begin = 8 + length + header["model.norm.weight"]["data_offsets"][0]
    content = bytearray(weights.read_bytes())
    content[begin : begin + 4] = np.float32(np.nan).tobytes()
    weights.write_bytes(content)
    found = problems(run_dir)
    assert len(found["checkpoint-3"]) == 3
    assert [words for words in ("is damaged: its XXH3 is", "scheduler.pt is missing", "more is extra")
            if not any(words in problem for problem in found["checkpoint-3"])] == []  # fmt: skip
    assert any(shard.name in problem for problem in found["checkpoint-3"])
    assert found["checkpoint-6"] == ["complete.json is missing, the save did not finish"]
    assert found["model"] == ["model.safetensors is damaged: NaN or infinity in 1 tensor (model.norm.weight)"]
    assert not verify(run_dir)
    assert "NOT AS IT WAS WRITTEN: 3" in capsys.readouterr().out


MODEL_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "model.safetensors is damaged": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "model.safetensors"),
    "model.safetensors is damaged (": (lambda path: path.write_bytes(b"\xff" * 100), "model.safetensors"),
    "*.safetensors are missing": (lambda path: path.unlink(), "model.safetensors"),
    "config.json is missing": (lambda path: path.unlink(), "config.json"),
    "config.json is damaged": (lambda path: path.write_text("{"), "config.json"),
    "x is missing from y": (lambda path: path.write_text('{"weight_map": {"x": "y"}}'), "model.safetensors.index.json"),
}


@pytest.mark.parametrize("expected", MODEL_DAMAGES)
def test_a_model_that_cannot_be_opened_is_named(run_dir: Path, expected: str) -> None:
    damage, name = MODEL_DAMAGES[expected]
    damage(run_dir / "model" / name)
    assert any(expected in problem for problem in problems(run_dir / "model")["model"])


def test_a_checkpoint_alone_and_nothing_at_all(run_dir: Path, tmp_path: Path) -> None:
    assert problems(run_dir / "checkpoint-6") == {"checkpoint-6": []}
    with pytest.raises(UserError, match="has nothing to check; pass a block store"):
        verify(tmp_path)
