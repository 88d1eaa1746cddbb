"""What an exported model's folder says to readers of any age, and how it takes its name."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import LlamaConfig

from pretraining.runs.export.publish import finalize, make_partial_dir, partial_folder, publish

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


def grown_folder(model_dir: Path, config: LlamaConfig) -> Path:
    partial = partial_folder(model_dir)
    make_partial_dir(partial)
    config.save_pretrained(partial)
    (partial / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    Tokenizer(models.BPE()).save(str(partial / "tokenizer.json"))
    finalize(partial)
    return partial


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 5e5}, LLAMA3])
def test_readers_before_transformers_5_find_the_positions(tmp_path: Path, rope: dict) -> None:
    folder = grown_folder(tmp_path / "model", LlamaConfig(rope_parameters=rope, use_cache=False))
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config.get("rope_scaling") == (rope if rope is LLAMA3 else None)
    opened = LlamaConfig.from_pretrained(folder)
    assert opened.rope_parameters == rope
    assert opened.use_cache


def test_a_model_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    for size in (32, 64):
        make_partial_dir(partial_folder(model_dir))
        (partial_folder(model_dir) / "left").touch()  # by an export that broke off
        publish(grown_folder(model_dir, LlamaConfig(hidden_size=size)), model_dir)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert json.loads((model_dir / "config.json").read_text())["hidden_size"] == size
        assert not (model_dir / "left").exists()


@pytest.mark.parametrize("ending", ["partial", "replaced"])
def test_nothing_is_removed_that_no_export_made(tmp_path: Path, ending: str) -> None:
    """Such as a block store that preprocess.py has not finished, under the name of an export."""
    model_dir, theirs = tmp_path / "model", tmp_path / f"model.{ending}"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    for size in (32, 64):
        publish(grown_folder(model_dir, LlamaConfig(hidden_size=size)), model_dir)
    assert json.loads((model_dir / "config.json").read_text())["hidden_size"] == 64
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"model", theirs.name}
    assert not any(path.name.startswith(".") for path in model_dir.iterdir()), "no marker in a finished model"


def test_links_and_files_in_the_place_of_an_export_stay(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "model.partial").symlink_to(target)
    (tmp_path / "model.partial-2").write_text("a file")
    assert partial_folder(tmp_path / "model").name == "model.partial-3"
    with pytest.raises(FileExistsError):
        make_partial_dir(tmp_path / "model.partial-2")
    assert target.is_dir()
