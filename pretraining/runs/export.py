"""The exported model: weights in safetensors, config and tokenizer, for everybody's tools."""

import json
import shutil
from pathlib import Path

from transformers import GenerationConfig, Trainer


def export_model(trainer: Trainer, model_dir: Path) -> None:
    """Gather the weights and write the model; called on every rank, the first one writes.

    The folder takes its name when it is complete; a model of that name is replaced.
    """
    partial = model_dir.with_name(model_dir.name + ".partial")
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        assert list(partial.glob("*.safetensors")), "no weights were gathered"
        _complete_config(partial)
        _write_generation_config(trainer, partial)
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle, which no reader of a model should open
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes 0600: a colleague could not read the model
        shutil.rmtree(model_dir, ignore_errors=True)
        partial.replace(model_dir)


def _complete_config(model_dir: Path) -> None:
    """Turn the cache on for generation, and write rope_theta where readers before transformers 5 look for it."""
    path = model_dir / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["use_cache"] = True
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_generation_config(trainer: Trainer, model_dir: Path) -> None:
    config = trainer.model.config
    GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id).save_pretrained(model_dir)
