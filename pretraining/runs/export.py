"""The folder of an exported model: weights in safetensors, config and tokenizer, for everybody's tools.

It grows beside its name, as NAME.partial, and takes the name when all of it is on the disk.
"""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig

from pretraining.system.files import sync

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"


def partial_folder(model_dir: Path) -> Path:
    """The folder in which a model grows."""
    return model_dir.with_name(model_dir.name + PARTIAL_SUFFIX)


def begin_folder(partial: Path) -> None:
    """Make the folder in which a model grows; what a broken export left there goes."""
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def complete_folder(partial: Path) -> None:
    """Let everybody read the model as it was trained, and have it on the disk.

    Weights, config and tokenizer are there already.
    """
    config = _complete_config(partial)
    _name_tokenizer(partial)
    GenerationConfig(bos_token_id=config["bos_token_id"], eos_token_id=config["eos_token_id"]).save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors writes 0600: a colleague could not read the model
        sync(path)
    sync(partial)


def give_name(partial: Path, model_dir: Path) -> None:
    """Let a complete folder take its name; a model of that name is there until then."""
    replaced = model_dir.with_name(model_dir.name + REPLACED_SUFFIX)
    shutil.rmtree(replaced, ignore_errors=True)
    if model_dir.exists():
        model_dir.replace(replaced)
    partial.replace(model_dir)
    sync(model_dir.parent)
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
