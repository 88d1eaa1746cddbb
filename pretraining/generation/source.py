"""Where the weights for sampling come from: a run folder, an exported model, a checkpoint, bare ZeRO shards, or the
Hub. Imports no torch, so that a missing or wrong model is reported at once.
"""

from dataclasses import dataclass
from pathlib import Path

from pretraining.errors import UserError
from pretraining.generation.hub import PICKLES, download_model, pickle_refusal
from pretraining.runs.checksums import COMPLETE_NAME, read_complete
from pretraining.runs.export.model_folder import config_fields, tokenizer_of
from pretraining.runs.run_folder import (
    MODEL_DIR_NAME,
    checkpoint_step,
    complete_checkpoints,
    is_run_folder,
    newest_run,
    optimizer_shards,
)
from pretraining.runs.untrusted import check_model_folder

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class ModelSource:
    """A folder to load from, whether its weights must first be put together from ZeRO shards, and what to call it."""

    location: str
    tokenizer_location: str
    only_shards: bool = False
    description: str = ""


def find_model(name: str | None, revision: str | None = None) -> ModelSource:
    """What `--model` and `--revision` mean; None is the newest run in runs/. A model of the Hub is downloaded.

    Raises:
        UserError: when there is no model there, it is not complete, or it is none to be trusted.
    """
    if name is None:
        run_dir = newest_run(RUNS_DIR)
        if run_dir is None:
            raise UserError("--model: there is no run in runs/ yet; train one with pretrain.py, or name a model")
        return _in_run_folder(run_dir)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {name} is a folder; leave it out, or name a model of the Hub")
        return _in_run_folder(folder) if is_run_folder(folder) else _in_folder(folder, str(folder))
    if folder.exists():
        raise UserError(f"--model {name}: is a file; name the folder that it lies in")
    folder = download_model(name, revision)
    return _in_folder(folder, f"{name} at {folder.name[:12]}", name=name)


def _in_run_folder(run_dir: Path) -> ModelSource:
    """The exported model of a run, or its newest complete checkpoint when it has not finished."""
    exported = run_dir / MODEL_DIR_NAME
    if _has_weights(exported):
        return _in_folder(exported, f"{exported} (exported model)")
    checkpoints = complete_checkpoints(run_dir)
    if not checkpoints:
        raise UserError(f"--model {run_dir}: the run has neither an exported model nor a complete checkpoint yet")
    return _in_folder(checkpoints[-1], f"{checkpoints[-1]} (newest complete checkpoint)")


def _in_folder(folder: Path, description: str, *, name: str | None = None) -> ModelSource:
    name = name or str(folder)
    _check_complete(folder)
    check_model_folder(folder, f"--model {name}")
    if _has_weights(folder):
        return _of_llama(ModelSource(str(folder), str(tokenizer_of(folder)), description=description))
    if optimizer_shards(folder):
        return _of_llama(ModelSource(str(folder), str(tokenizer_of(folder)), True, f"{description} (ZeRO shards)"))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(pickle_refusal(name, pickles[0]))
    raise UserError(f"--model {name}: is no run, exported model or checkpoint (no *.safetensors, no ZeRO shards)")


def _of_llama(source: ModelSource) -> ModelSource:
    """The same source, if its config is that of a Llama."""
    model_type = config_fields(Path(source.location)).get("model_type", "llama")
    if model_type != "llama":
        raise UserError(f"--model {source.location}: is a {model_type} model; this suite samples from Llamas")
    return source


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_complete(folder: Path) -> None:
    """Refuse a checkpoint whose save did not finish, and one of which weights are missing or cut off."""
    problem = None
    if (folder / COMPLETE_NAME).is_file():
        problem = _incompleteness(folder)
    elif checkpoint_step(folder) is not None and is_run_folder(folder.parent):
        problem = f"{COMPLETE_NAME} is missing, the save did not finish"
    if problem is not None:
        whole = complete_checkpoints(folder.parent)
        remedy = f"take {whole[-1]}" if whole else "bring its files back, or train on"
        raise UserError(f"--model {folder}: is no complete checkpoint ({problem}); {remedy}")


def _incompleteness(folder: Path) -> str | None:
    try:
        content = read_complete(folder)
    except (OSError, ValueError) as error:
        return f"{COMPLETE_NAME} cannot be read ({error})"
    sizes = {folder / file["path"]: file["num_bytes"] for file in content["files"]}
    cut = [path.name for path, size in sizes.items() if path.is_file() and path.stat().st_size != size]
    if cut:
        return f"{cut[0]} is cut off"
    num_shards = len(optimizer_shards(folder))
    if not _has_weights(folder) and num_shards != content["num_processes"]:
        return f"{num_shards} of {content['num_processes']} shards are there"
    return None
