"""Find the model that a flag names: a run folder, an exported model, a checkpoint, bare ZeRO shards, or a Hub model.

Imports no torch, so that a missing or wrong model is reported at once. Only safetensors and JSON are read: pickled
weights, and code that comes with a model, could run anything.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.errors import UserError
from pretraining.runs.checksums import COMPLETE_NAME, read_complete
from pretraining.runs.export.model_folder import config_fields, tokenizer_of, tokenizer_places
from pretraining.runs.history import TARGET_REACHED, read_records
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
SMALL_FILES = ["*.json", "*.jinja", "README.md"]  # config, tokenizer, chat template, and the license in the card
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class ModelSource:
    """The folder to load; `only_shards`: its weights must be assembled from ZeRO shards.

    `tokenizer_location` is empty where the model has none and none is needed.
    """

    location: str
    tokenizer_location: str
    only_shards: bool = False
    description: str = ""


@dataclass(frozen=True)
class _Request:
    """The model that a flag names, and what is needed of it."""

    name: str
    flag: str = "--model"
    needs_tokenizer: bool = True
    needs_weights: bool = True

    @property
    def place(self) -> str:
        return f"{self.flag} {self.name}"


def find_model(
    name: str | None,
    revision: str | None = None,
    *,
    flag: str = "--model",
    needs_tokenizer: bool = True,
    needs_weights: bool = True,
) -> ModelSource:
    """Resolve a model and its revision; None is the newest run in runs/. A Hub model is downloaded.

    Of a Hub model, config and tokenizer are downloaded and checked before the weights, and without `needs_weights` they
    are all.

    Raises:
        UserError: naming `flag`, if no model is found, it is incomplete, or it is not safe to load.
    """
    if name is None:
        run_dir = newest_run(RUNS_DIR)
        if run_dir is None:
            raise UserError(f"{flag}: runs/ has no run yet; train one with pretrain.py, or pass a model")
        return _in_run_folder(run_dir, _Request(str(run_dir), flag))
    request, folder = _Request(name, flag, needs_tokenizer, needs_weights), Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {name} is a folder; remove the flag, or pass a Hub model")
        return _in_run_folder(folder, request) if is_run_folder(folder) else _in_folder(folder, str(folder), request)
    if folder.exists():
        raise UserError(f"{request.place}: is a file; pass the folder that contains it")
    folder = _download(request, revision)
    return _in_folder(folder, f"{name} at {folder.name[:12]}", request)


def split_revision(name: str) -> tuple[str, str | None]:
    """Name and revision of USER/NAME@REVISION; the path of a folder can have an @.

    >>> split_revision("someone/tiny@main")
    ('someone/tiny', 'main')
    """
    model, separator, revision = name.rpartition("@")
    is_revision = bool(separator) and bool(revision) and not Path(name).expanduser().exists()
    return (model, revision) if is_revision else (name, None)


def saved_models(run_dir: Path) -> list[Path]:
    """Complete checkpoints and exports of a run by step, then the final model unless one of those is the last step.

    Raises:
        UserError: if the run has saved no model yet.
    """
    exports = {path.name.removeprefix("step-"): path for path in run_dir.glob("exports/step-*")}
    # Other names are of unfinished or replaced exports, e.g. step-10.partial.
    by_step = {int(name): path for name, path in exports.items() if name.isdecimal() and path.is_dir()}
    by_step |= {checkpoint_step(path) or 0: path for path in complete_checkpoints(run_dir)}
    models = [by_step[step] for step in sorted(by_step)]
    exported = run_dir / MODEL_DIR_NAME
    if exported.is_dir() and _last_step(run_dir) not in by_step:
        models.append(exported)
    if not models:
        raise _without_model(run_dir)
    return models


def _last_step(run_dir: Path) -> int:
    """The step after which a finished run ended: the last one, or that which reached --target_loss."""
    arguments = read_run_record(run_dir)["arguments"]
    if arguments.get("target_loss") is None:
        return arguments["max_steps"]
    reached = [record["step"] for record in read_records(run_dir) if record.get("event") == TARGET_REACHED]
    return reached[-1] if reached else arguments["max_steps"]


def _in_run_folder(run_dir: Path, request: _Request) -> ModelSource:
    """The exported model of a run, or its newest complete checkpoint while it is unfinished."""
    exported = run_dir / MODEL_DIR_NAME
    if _has_weights(exported):
        return _in_folder(exported, f"{exported} (exported model)", request)
    checkpoints = complete_checkpoints(run_dir)
    if not checkpoints:
        raise _without_model(run_dir, request.flag)
    return _in_folder(checkpoints[-1], f"{checkpoints[-1]} (newest complete checkpoint)", request)


def _without_model(run_dir: Path, flag: str = "--model") -> UserError:
    return UserError(
        f"{flag} {run_dir}: the run has neither an exported model nor a complete checkpoint yet; pass another run"
    )


def _in_folder(folder: Path, description: str, request: _Request) -> ModelSource:
    _check_complete(folder, request.flag)
    check_model_folder(folder, request.place)
    only_shards = not _has_weights(folder)
    if only_shards and request.needs_weights and not optimizer_shards(folder):
        raise _without_weights(request.place, [path.name for path in folder.iterdir()])
    tokenizer = _tokenizer_location(folder, request)
    model_type = config_fields(folder).get("model_type", "llama")
    if model_type != "llama":
        raise UserError(f"{request.place}: is a {model_type} model; this suite has Llama models only, pass one")
    if only_shards:
        return ModelSource(str(folder), tokenizer, True, f"{description} (ZeRO shards)")
    return ModelSource(str(folder), tokenizer, description=description)


def _tokenizer_location(folder: Path, request: _Request) -> str:
    if not request.needs_tokenizer and not any(
        (place / "tokenizer.json").is_file() for place in tokenizer_places(folder)
    ):
        return ""
    return str(tokenizer_of(folder))


def _download(request: _Request, revision: str | None) -> Path:
    """Download config, tokenizer and safetensors of a Hub model, with the token of HF_TOKEN or `hf auth login`."""
    if not HUB_ID.fullmatch(request.name):
        raise UserError(f"{request.place}: is neither a folder nor a Hub id (USER/NAME); check the path")
    # Here: the Hub's client takes 0.2 s to import, which only a Hub model needs.
    from huggingface_hub import HfApi, snapshot_download

    def fetch(patterns: list[str], revision: str | None) -> Path:
        return Path(
            snapshot_download(request.name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
        )

    try:
        folder = fetch(SMALL_FILES, revision)
        _in_folder(folder, "", replace(request, needs_weights=False))  # before gigabytes are downloaded
        if request.needs_weights:
            fetch(["*.safetensors"], folder.name)
        if request.needs_weights and not any(folder.glob("*.safetensors")):
            raise _without_weights(request.place, HfApi().list_repo_files(request.name, revision=revision))
    except UserError:
        raise
    except Exception as error:  # each layer of the client has its own errors
        reason = " ".join(str(error).split())
        raise UserError(
            f"{request.place}: cannot be loaded ({reason}); check the name, the revision and HF_TOKEN"
        ) from None
    return folder


def _without_weights(place: str, files: list[str]) -> UserError:
    """The error for a folder or Hub model with these files, none of which has weights that are safe to load."""
    pickles = [file for file in sorted(files) if any(Path(file).match(pattern) for pattern in PICKLES)]
    if not pickles:
        missing = "no *.safetensors, no ZeRO shards"
        return UserError(f"{place}: is not a run, exported model or checkpoint ({missing}); check the path")
    return UserError(
        f"{place}: has pickled weights ({pickles[0]}), which can run code when loaded, and no safetensors; use "
        "a model with *.safetensors, or convert it where you trust it (save_pretrained)"
    )


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_complete(folder: Path, flag: str) -> None:
    """Reject a checkpoint whose save did not finish, or whose weights are missing or truncated."""
    problem = None
    if (folder / COMPLETE_NAME).is_file():
        problem = _incomplete_reason(folder)
    elif checkpoint_step(folder) is not None and is_run_folder(folder.parent):
        problem = f"{COMPLETE_NAME} is missing, the save did not finish"
    if problem is not None:
        complete = complete_checkpoints(folder.parent)
        remedy = f"use {complete[-1]}" if complete else "restore its files, or continue the training"
        raise UserError(f"{flag} {folder}: checkpoint is incomplete ({problem}); {remedy}")


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
