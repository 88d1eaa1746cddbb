"""What --dataset means: a block store on this machine, one on the Hub, or text that must be preprocessed first."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.arguments import HUB_ID
from pretraining.cli.errors import UserError
from pretraining.corpus.inputs import FORMATS
from pretraining.corpus.manifest import MANIFEST_NAME, Manifest, read_manifest


@dataclass(frozen=True)
class StoreSource:
    """A block store: its name as it was given, its folder, what is in it, and its commit when it is the Hub's."""

    name: str
    folder: Path
    manifest: Manifest
    commit: str | None = None


def find_store(dataset: str, *, revision: str | None) -> StoreSource:
    """The block store that --dataset and --dataset_revision mean, brought here when it is on the Hub.

    Raises:
        UserError: when there is none.
    """
    path = Path(dataset)
    if not path.exists() and HUB_ID.fullmatch(dataset):
        from pretraining.corpus.hub_download import download_store  # the Hub's client takes a moment to import

        folder = download_store(dataset, revision=revision)
        return StoreSource(dataset, folder, read_manifest(folder, flag="--dataset"), commit=folder.name)
    if revision is not None:
        raise UserError(f"--dataset_revision {revision}: --dataset {dataset} is not on the Hub; leave it out")
    _refuse_text(path)
    return StoreSource(dataset, path, read_manifest(path, flag="--dataset"))


def _refuse_text(path: Path) -> None:
    if path.is_file() or _is_folder_of_text(path):
        raise UserError(
            f"--dataset {path}: holds no token blocks; make them first: "
            f"python3 preprocess.py --data_files {shlex.quote(str(path))} --output_dir blocks"
        )


def _is_folder_of_text(path: Path) -> bool:
    """Whether preprocess.py reads files of a folder that is no block store, nor one whose manifest was lost."""
    if not path.is_dir() or (path / MANIFEST_NAME).is_file() or (path / "data").is_dir():
        return False
    return any(FORMATS.keys() & set(file.suffixes) for file in path.iterdir())
