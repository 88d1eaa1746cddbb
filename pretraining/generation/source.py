"""Find the weights of `--model`: a run folder, an exported model, a checkpoint, bare ZeRO shards, or a Hub model.

Imports no torch, so that a missing or wrong model is reported at once. Only safetensors and JSON are read: pickled
weights, and code that comes with a model, could run anything.
"""

from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.errors import UserError
from pretraining.runs.checksums import COMPLETE_NAME, read_complete
from pretraining.runs.export.model_folder import config_fields, tokenizer_of
from pretraining.runs.record_file import read_run_record
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
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class ModelSource:
    """The folder to load; `only_shards`: its weights must be assembled from ZeRO shards."""

    location: str
    tokenizer_location: str
    only_shards: bool = False
    description: str = ""


def find_model(name: str | None, revision: str | None = None) -> ModelSource:
    """Resolve `--model` and `--revision`; None is the newest run in runs/. A Hub model is downloaded.

    Raises:
        UserError: if no model is found, it is incomplete, or it is not safe to load.
    """
    if name is None:
        run_dir = newest_run(RUNS_DIR)
        if run_dir is None:
            raise UserError("--model: runs/ has no run yet; train one with pretrain.py, or pass a model")
        return _in_run_folder(run_dir)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {name} is a folder; remove the flag, or pass a Hub model")
        return _in_run_folder(folder) if is_run_folder(folder) else _in_folder(folder, str(folder))
    if folder.exists():
        raise UserError(f"--model {name}: is a file; pass the folder that contains it")
    folder = _download(name, revision)
    return _in_folder(folder, f"{name} at {folder.name[:12]}", name=name)


def saved_models(run_dir: Path) -> list[Path]:
    """Complete checkpoints and exports of a run by step, then the final model unless one of those is the last step.

    Raises:
        UserError: if the run has saved no model yet.
    """
    exports = {path.name.removeprefix("step-"): path for path in run_dir.glob("exports/step-*")}
    # Others are unfinished or set aside, e.g. step-10.partial.
    by_step = {int(name): path for name, path in exports.items() if name.isdecimal() and path.is_dir()}
    by_step |= {checkpoint_step(path) or 0: path for path in complete_checkpoints(run_dir)}
    models = [by_step[step] for step in sorted(by_step)]
    exported, last_step = run_dir / MODEL_DIR_NAME, read_run_record(run_dir)["arguments"]["max_steps"]
    if exported.is_dir() and last_step not in by_step:
        models.append(exported)
    if not models:
        raise _without_model(run_dir)
    return models


def _in_run_folder(run_dir: Path) -> ModelSource:
    """The exported model of a run, or its newest complete checkpoint while it is unfinished."""
    exported = run_dir / MODEL_DIR_NAME
    if _has_weights(exported):
        return _in_folder(exported, f"{exported} (exported model)")
    checkpoints = complete_checkpoints(run_dir)
    if not checkpoints:
        raise _without_model(run_dir)
    return _in_folder(checkpoints[-1], f"{checkpoints[-1]} (newest complete checkpoint)")


def _without_model(run_dir: Path) -> UserError:
    return UserError(
        f"--model {run_dir}: the run has neither an exported model nor a complete checkpoint yet; pass another run"
    )


def _in_folder(folder: Path, description: str, *, name: str | None = None) -> ModelSource:
    name = name or str(folder)
    _check_complete(folder)
    check_model_folder(folder, f"--model {name}")
    if _has_weights(folder):
        source = ModelSource(str(folder), str(tokenizer_of(folder)), description=description)
    elif optimizer_shards(folder):
        source = ModelSource(str(folder), str(tokenizer_of(folder)), True, f"{description} (ZeRO shards)")
    else:
        raise _without_weights(name, [path.name for path in folder.iterdir()])
    model_type = config_fields(folder).get("model_type", "llama")
    if model_type != "llama":
        raise UserError(f"--model {folder}: is a {model_type} model; this suite samples from Llama models, pass one")
    return source


def _download(name: str, revision: str | None) -> Path:
    """Download config, tokenizer and safetensors of a Hub model, with the token of HF_TOKEN or `hf auth login`."""
    if not HUB_ID.fullmatch(name):
        raise UserError(f"--model {name}: is neither a folder nor a Hub id (USER/NAME); check the path")
    # Here: the Hub's client takes 0.2 s to import, which only a Hub model needs.
    from huggingface_hub import HfApi, snapshot_download

    patterns = ["*.json", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            raise _without_weights(name, HfApi().list_repo_files(name, revision=revision))
    except UserError:
        raise
    except Exception as error:  # each layer of the client has its own errors
        reason = " ".join(str(error).split())
        raise UserError(
            f"--model {name}: cannot be loaded ({reason}); check the name, --revision and HF_TOKEN"
        ) from None
    return folder


def _without_weights(name: str, files: list[str]) -> UserError:
    """The error for a folder or Hub model with these files, none of which has weights that are safe to load."""
    pickles = [file for file in sorted(files) if any(Path(file).match(pattern) for pattern in PICKLES)]
    if not pickles:
        missing = "no *.safetensors, no ZeRO shards"
        return UserError(f"--model {name}: is not a run, exported model or checkpoint ({missing}); check the path")
    return UserError(
        f"--model {name}: has pickled weights ({pickles[0]}), which can run code when loaded, and no safetensors; use "
        "a model with *.safetensors, or convert it where you trust it (save_pretrained)"
    )


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_complete(folder: Path) -> None:
    """Reject a checkpoint whose save did not finish, or whose weights are missing or truncated."""
    problem = None
    if (folder / COMPLETE_NAME).is_file():
        problem = _incomplete_reason(folder)
    elif checkpoint_step(folder) is not None and is_run_folder(folder.parent):
        problem = f"{COMPLETE_NAME} is missing, the save did not finish"
    if problem is not None:
        complete = complete_checkpoints(folder.parent)
        remedy = f"use {complete[-1]}" if complete else "restore its files, or continue the training"
        raise UserError(f"--model {folder}: checkpoint is incomplete ({problem}); {remedy}")


def _incomplete_reason(folder: Path) -> str | None:
    try:
        content = read_complete(folder)
    except (OSError, ValueError) as error:
        return f"{COMPLETE_NAME} cannot be read ({error})"
    sizes = {folder / file["path"]: file["num_bytes"] for file in content["files"]}
    cut = [path.name for path, size in sizes.items() if path.is_file() and path.stat().st_size != size]
    if cut:
        return f"{cut[0]} is truncated"
    num_shards = len(optimizer_shards(folder))
    if not _has_weights(folder) and num_shards != content["num_processes"]:
        return f"{num_shards} of {content['num_processes']} shards are present"
    return None
