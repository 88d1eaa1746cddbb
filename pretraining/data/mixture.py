"""Open the block stores of --dataset, on this machine or on the Hub, with their weights."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.data.input.files import FORMATS
from pretraining.data.store.manifest import MANIFEST_NAME, Manifest, StoreSpec, read_manifest
from pretraining.errors import UserError, raise_problems

# NAME=STORE:WEIGHT, of which only STORE must be there.
DATASET_TEXT = re.compile(r"(?:(?P<name>[^=/]*)=)?(?P<store>.*?)(?::(?P<weight>[^:/]*))?")
MAX_STORES = 256  # each takes 15 ms to check
MAX_WEIGHT = 1e9
# What must be equal in all stores of a mixture, and how it is shown.
COMMON = {
    "block_length": "blocks of {} tokens",
    "tokenizer.sha256": "the tokenizer of sha256 {:.12}",
    "token_rules": "the token rules {}",
}


@dataclass(frozen=True)
class BlockStore:
    """A block store: its name as it was given, folder, manifest, and commit if it is on the Hub."""

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
    """The training data: one block store, or several with their shares.

    With `phases`, each has its own mixture of these parts, whose weights are their shares of the whole run.
    """

    parts: tuple[WeightedStore, ...]
    phases: tuple["Mixture", ...] = ()

    @property
    def first(self) -> BlockStore:
        """The first store, for what all have in common."""
        return self.parts[0].store

    @property
    def origin(self) -> StoreSpec:
        """Block length, tokenizer and token rules of all stores."""
        return self.first.manifest.origin

    @property
    def names(self) -> str:
        """The stores as they were given."""
        return " ".join(part.store.name for part in self.parts)

    def num_blocks(self, split: str) -> list[int]:
        """The number of blocks of a split in each store."""
        return [part.store.manifest.splits[split].num_blocks for part in self.parts]


def load_mixture(
    datasets: Sequence[str], *, revision: str | None, opened: dict[str, BlockStore] | None = None
) -> Mixture:
    """Open the block stores of --dataset and --dataset_revision; those of the Hub are downloaded.

    `opened` has those that the run has opened already, by folder or Hub id; the others are added.

    Raises:
        UserError: when one is missing, the weights are invalid, or the stores are not compatible.
    """
    named = read_dataset_texts(datasets)
    stores = {} if opened is None else opened
    places = [str(Path(store).resolve()) if Path(store).exists() else store for _, store, _ in named]
    if revision is not None and len(named) + len(stores.keys() - set(places)) > 1:
        raise UserError(
            f"--dataset_revision {revision}: works with one --dataset only; remove it, or download the data sets first"
        )
    for place, (_, store, _) in zip(places, named, strict=True):
        if place not in stores:
            stores[place] = find_store(store, revision=revision)
    parts = [WeightedStore(name, weight, stores[at]) for at, (name, _, weight) in zip(places, named, strict=True)]
    for part in parts:
        check_compatible(next(iter(stores.values())), part.store)
    return Mixture(tuple(parts))


def read_dataset_texts(datasets: Sequence[str]) -> list[tuple[str | None, str, float]]:
    """Name, store and weight of each --dataset; whether the store exists is not checked.

    Raises:
        UserError: when one is empty or a file or folder of text, the weights are invalid, or there are too many.
    """
    if len(datasets) > MAX_STORES:
        raise UserError(f"--dataset: {len(datasets):,} block stores, at most {MAX_STORES}; preprocess some together")
    named = [_read_dataset_text(text, alone=len(datasets) == 1) for text in datasets]
    repeated = [name for name, count in Counter(name for name, _, _ in named).items() if count > 1]
    if repeated:
        raise UserError(f"--dataset: two sources are called {repeated[0]}; use different names")
    for text, (_, store, _) in zip(datasets, named, strict=True):
        if not store:
            raise UserError(
                f"--dataset {text!r}: names no block store; pass the folder that preprocess.py made, or USER/NAME of "
                "a data set on the Hub"
            )
        _reject_text_input(Path(store))
    return named


def find_store(dataset: str, *, revision: str | None) -> BlockStore:
    """The block store of one folder, or of one Hub id, which is downloaded.

    Raises:
        UserError: when it does not exist.
    """
    path = Path(dataset)
    if not path.exists() and HUB_ID.fullmatch(dataset):
        from pretraining.data.hub.download import download_store  # the Hub's client takes a moment to import

        folder = download_store(dataset, revision=revision)
        return BlockStore(dataset, folder, read_manifest(folder, flag="--dataset"), commit=folder.name)
    if revision is not None:
        raise UserError(f"--dataset_revision {revision}: --dataset {dataset} is not on the Hub; remove the flag")
    return BlockStore(dataset, path, read_manifest(path, flag="--dataset"))


def _read_dataset_text(text: str, *, alone: bool) -> tuple[str | None, str, float]:
    """Name, store and weight. A single store needs neither name nor weight."""
    if alone and text and Path(text).exists():
        return None, text, 1.0
    match = DATASET_TEXT.fullmatch(text)
    assert match is not None, text
    name, store, weight_text = match.group("name", "store", "weight")
    if alone and weight_text is None:
        return name, store, 1.0
    if not name:
        raise UserError(f"--dataset {text}: a weight needs the name of its source; use NAME={store}:WEIGHT")
    if weight_text is None:
        raise UserError(f"--dataset {text}: with several, each needs a weight; use {name}={store}:WEIGHT")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= MAX_WEIGHT:
        raise UserError(
            f"--dataset {text}: the weight {weight_text!r} is not a number in (0, 1e9]; use {name}={store}:0.5"
        )
    return name, store, weight


def check_compatible(first: BlockStore, other: BlockStore) -> None:
    """Check that two stores can be read in one run.

    Raises:
        UserError: when block length, tokenizer or token rules differ.
    """
    problems = []
    for path, words in COMMON.items():
        ours, theirs = map(attrgetter(path), (first.manifest.origin, other.manifest.origin))
        if ours != theirs:
            problems.append(
                f"--dataset {other.name}: has {words.format(theirs)}, {first.name} has {words.format(ours)}; "
                "preprocess one of them again with the flags of the other"
            )
    raise_problems(problems)


def _reject_text_input(path: Path) -> None:
    """Raise `UserError` for a file, and for a folder with input of preprocess.py that is not a damaged block store."""
    is_store = (path / MANIFEST_NAME).is_file() or (path / "data").is_dir()
    files = [] if is_store or not path.is_dir() else path.iterdir()
    if path.is_file() or any(FORMATS.keys() & set(file.suffixes) for file in files):
        raise UserError(
            f"--dataset {path}: has text, not token blocks; preprocess it first: "
            f"python3 preprocess.py --data_files {shlex.quote(str(path))} --output_dir blocks"
        )
