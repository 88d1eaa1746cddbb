"""Write the folder of an exported model: weights in safetensors, config and tokenizer, as standard tools read them.

It is built as NAME.partial, and renamed to NAME when it is complete on the disk. Only a folder with the marker of an
unfinished export is ever removed: NAME.partial can also be an unfinished block store of preprocess.py.
"""

import json
import os
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig

from pretraining.runs.run_folder import numbered_names
from pretraining.system.files import fsync

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
MARKER_NAME = ".unfinished-export"


def partial_folder(model_dir: Path) -> Path:
    """The folder in which a model is built: NAME.partial, or NAME.partial-2 and so on if other files have that name."""
    return _free_place(model_dir, PARTIAL_SUFFIX)


def _free_place(model_dir: Path, suffix: str) -> Path:
    return next(
        place for place in numbered_names(model_dir, suffix) if not os.path.lexists(place) or _is_unfinished(place)
    )


def _is_unfinished(folder: Path) -> bool:
    """Whether an interrupted export left this folder, or it is empty."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / MARKER_NAME).is_file() or not any(folder.iterdir())


def make_partial_dir(partial: Path) -> None:
    """Create the folder in which a model is built; what an interrupted export left there is removed.

    Raises:
        OSError: when another file or folder has its name.
    """
    if _is_unfinished(partial):
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / MARKER_NAME).touch()


def finalize(partial: Path) -> None:
    """Complete config and tokenizer so that standard tools load the model as it was trained, and fsync all files.

    Weights, config and tokenizer must have been written.
    """
    config = _complete_config(partial)
    _name_tokenizer(partial)
    GenerationConfig(bos_token_id=config["bos_token_id"], eos_token_id=config["eos_token_id"]).save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors writes 0600: other users could not read the model
        fsync(path)
    fsync(partial)


def publish(partial: Path, model_dir: Path) -> None:
    """Rename a complete folder to its final name; a model of that name stays until then."""
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
    """Turn on the cache for generation, and add the RoPE fields that transformers before 5 reads.

    With rope_parameters alone it silently takes 10,000 as rope_theta, and does not scale.
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
    """Set the tokenizer class that transformers before 5 knows too, and whether BOS and EOS are added.

    Without the latter llama.cpp adds BOS even if tokenizer.json does not.
    """
    path = partial / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    added = Tokenizer.from_file(str(partial / "tokenizer.json")).encode("").tokens
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config |= {f"add_{role}_token": config.get(f"{role}_token") in added for role in ("bos", "eos")}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
