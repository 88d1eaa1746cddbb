"""What --dataset means: block stores on this machine or on the Hub, with their shares; or text, by mistake."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.data.input.find import FORMATS
from pretraining.data.store.manifest import MANIFEST_NAME, Manifest, StoreSpec, read_manifest
from pretraining.errors import UserError

# NAME=STORE:WEIGHT, of which only STORE must be there.
DATASET_TEXT = re.compile(r"(?:(?P<name>[^=/]*)=)?(?P<store>.*?)(?::(?P<weight>[^:/]*))?")
MAX_STORES = 256  # each takes 15 ms to check
MOST_WEIGHT = 1e9
# What must be alike in all stores of a mixture, and in what words.
COMMON = {
    "block_length": "blocks of {} tokens",
    "tokenizer.sha256": "the tokenizer of sha256 {:.12}",
    "token_rules": "the token rules {}",
}


@dataclass(frozen=True)
class BlockStore:
    """A block store: its name as it was given, its folder, what is in it, and its commit when it is the Hub's."""

    name: str
    folder: Path
    manifest: Manifest
    commit: str | None = None


@dataclass(frozen=True)
class WeightedStore:
    """A block store and its share of the blocks; `source` is its name in a mixture."""

    source: str | None
    weight: float
    store: BlockStore


@dataclass(frozen=True)
class Mixture:
    """All that is trained on: one block store, or several with their shares."""

    parts: tuple[WeightedStore, ...]

    @property
    def first(self) -> BlockStore:
        """The store that speaks for all in what all have in common."""
        return self.parts[0].store

    @property
    def origin(self) -> StoreSpec:
        """Block length, tokenizer and token rules of all stores."""
        return self.first.manifest.origin

    @property
    def names(self) -> str:
        """The stores as a person names them."""
        return " ".join(part.store.name for part in self.parts)

    def num_blocks(self, split: str) -> list[int]:
        """How many blocks of a split each store has."""
        return [part.store.manifest.splits[split].num_blocks for part in self.parts]


def load_mixture(datasets: Sequence[str], *, revision: str | None) -> Mixture:
    """The block stores that --dataset and --dataset_revision mean, those of the Hub brought here.

    Raises:
        UserError: when one is missing, the shares are unclear, or the stores do not fit together.
    """
    named = read_dataset_texts(datasets)
    if revision is not None and len(datasets) > 1:
        raise UserError(f"--dataset_revision {revision}: goes with one --dataset; leave it out, or download them first")
    parts = [WeightedStore(name, weight, find_store(store, revision=revision)) for name, store, weight in named]
    for part in parts[1:]:
        _check_alike(parts[0].store, part.store)
    return Mixture(tuple(parts))


def read_dataset_texts(datasets: Sequence[str]) -> list[tuple[str | None, str, float]]:
    """Name, store and weight of each --dataset; whether there is such a store is not looked at.

    Raises:
        UserError: when one is empty or a file or folder of text, the shares are unclear, or there are too many.
    """
    if len(datasets) > MAX_STORES:
        raise UserError(f"--dataset: {len(datasets):,} block stores, at most {MAX_STORES}; preprocess some together")
    named = [_read_dataset_text(text, alone=len(datasets) == 1) for text in datasets]
    repeated = [name for name, count in Counter(name for name, _, _ in named).items() if count > 1]
    if repeated:
        raise UserError(f"--dataset: two sources are called {repeated[0]}; give each a name of its own")
    for text, (_, store, _) in zip(datasets, named, strict=True):
        if not store:
            raise UserError(
                f"--dataset {text!r}: names no block store; pass the folder that preprocess.py made, or USER/NAME of "
                "a data set on the Hub"
            )
        _refuse_text(Path(store))
    return named


def find_store(dataset: str, *, revision: str | None) -> BlockStore:
    """The block store of one folder or Hub id, brought here when it is on the Hub.

    Raises:
        UserError: when there is none.
    """
    path = Path(dataset)
    if not path.exists() and HUB_ID.fullmatch(dataset):
        from pretraining.data.hub.download import download_store  # the Hub's client takes a moment to import

        folder = download_store(dataset, revision=revision)
        return BlockStore(dataset, folder, read_manifest(folder, flag="--dataset"), commit=folder.name)
    if revision is not None:
        raise UserError(f"--dataset_revision {revision}: --dataset {dataset} is not on the Hub; leave it out")
    return BlockStore(dataset, path, read_manifest(path, flag="--dataset"))


def _read_dataset_text(text: str, *, alone: bool) -> tuple[str | None, str, float]:
    """Name, store and weight. A store alone needs neither name nor weight, and may be a folder of any name."""
    if alone and text and Path(text).exists():
        return None, text, 1.0
    match = DATASET_TEXT.fullmatch(text)
    assert match is not None, text
    name, store, weight_text = match.group("name", "store", "weight")
    if alone and weight_text is None:
        return name, store, 1.0
    if not name:
        raise UserError(f"--dataset {text}: a share needs the name of its source; give NAME={store}:WEIGHT")
    if weight_text is None:
        raise UserError(f"--dataset {text}: with several, each needs its share; give {name}={store}:WEIGHT")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= MOST_WEIGHT:
        raise UserError(
            f"--dataset {text}: the share {weight_text!r} is not a number in (0, 1e9]; use {name}={store}:0.5"
        )
    return name, store, weight


def _check_alike(first: BlockStore, other: BlockStore) -> None:
    problems = []
    for path, words in COMMON.items():
        ours, theirs = _value_of(first.manifest.origin, path), _value_of(other.manifest.origin, path)
        if ours != theirs:
            problems.append(
                f"--dataset {other.name}: has {words.format(theirs)}, {first.name} has {words.format(ours)}; "
                "preprocess one of them again like the other"
            )
    if problems:
        raise UserError(*problems)


def _value_of(origin: StoreSpec, path: str) -> object:
    value: object = origin
    for name in path.split("."):
        value = getattr(value, name)
    return value


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
