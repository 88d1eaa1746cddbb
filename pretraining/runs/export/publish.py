"""The folder of an exported model: weights in safetensors, config and tokenizer, for everybody's tools.

It grows beside its name, as NAME.partial, and takes the name when all of it is on the disk. Only a folder with the
marker of an unfinished export is ever removed: NAME.partial can also be an unfinished block store of preprocess.py.
"""

import json
import os
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig

from pretraining.system.files import fsync

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
MARKER_NAME = ".unfinished-export"


def partial_folder(model_dir: Path) -> Path:
    """The folder in which a model grows: NAME.partial, or NAME.partial-2 and so on where that is something else."""
    return _free_place(model_dir, PARTIAL_SUFFIX)


def _free_place(model_dir: Path, suffix: str) -> Path:
    names = (f"{model_dir.name}{suffix}{number}" for number in ("", *(f"-{count}" for count in range(2, 10_000))))
    places = (model_dir.with_name(name) for name in names)
    return next(place for place in places if not os.path.lexists(place) or _is_unfinished(place))


def _is_unfinished(folder: Path) -> bool:
    """Whether an export that broke off left this folder, or it is empty."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / MARKER_NAME).is_file() or not any(folder.iterdir())


def make_partial_dir(partial: Path) -> None:
    """Make the folder in which a model grows; what a broken export left there is removed.

    Raises:
        OSError: when something else has its name.
    """
    if _is_unfinished(partial):
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / MARKER_NAME).touch()


def finalize(partial: Path) -> None:
    """Let everybody read the model as it was trained, and have it on the disk.

    Weights, config and tokenizer are there already.
    """
    config = _complete_config(partial)
    _name_tokenizer(partial)
    GenerationConfig(bos_token_id=config["bos_token_id"], eos_token_id=config["eos_token_id"]).save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors writes 0600: a colleague could not read the model
        fsync(path)
    fsync(partial)


def publish(partial: Path, model_dir: Path) -> None:
    """Let a complete folder take its name; a model of that name is there until then."""
    replaced = _free_place(model_dir, REPLACED_SUFFIX)
    shutil.rmtree(replaced, ignore_errors=True)
    if model_dir.exists():
        (model_dir / MARKER_NAME).touch()
        model_dir.replace(replaced)
    (partial / MARKER_NAME).unlink(missing_ok=True)
    partial.replace(model_dir)
    fsync(model_dir.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _complete_config(partial: Path) -> dict:
    """Turn the cache on for generation, and write the rotary positions where transformers before 5 looks for them.

    It would take 10,000 for a rope_theta that stands in rope_parameters alone, and not scale at all, without a word.
    """
    path = partial / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    config |= {"use_cache": True, "rope_theta": rope["rope_theta"]}
    if rope["rope_type"] != "default":
        config["rope_scaling"] = rope
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def _name_tokenizer(partial: Path) -> None:
    """Call the tokenizer by the name that transformers before 5 has for it too; 5's own it refuses to open.

    And say what tokenizer.json puts around a text: llama.cpp would put BOS before it where that puts none.
    """
    path = partial / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    around = Tokenizer.from_file(str(partial / "tokenizer.json")).encode("").tokens
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config |= {f"add_{role}_token": config.get(f"{role}_token") in around for role in ("bos", "eos")}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
