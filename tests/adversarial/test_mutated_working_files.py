"""Damaged working files of an unfinished block store: one line that names the file and the remedy, or the same bytes.

Every file is damaged hundreds of times and read by what reads it; some damages go through preprocess.py as a whole.
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import preprocess
from pretraining.data.build import progress
from pretraining.data.build.partial_store import PartialStore
from pretraining.data.build.progress import read_progress
from pretraining.data.build.slice_writer import SliceWriter, read_carried
from pretraining.data.build.working_files import read_arrays, read_record
from pretraining.data.encode.deduplicate import Duplicates
from pretraining.data.input.hashes import read_hashes
from pretraining.data.store.manifest import StoreSpec
from pretraining.data.tokenize import tokenizer as tokenizers
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from pretraining.system import files as system_files
from pretraining.system.checked_json import from_json
from tests.adversarial.drivers.mutations import mutations, num_mutations
from tests.conftest import PROJECT_DIR

T = TypeVar("T")
MUTATIONS_EACH = num_mutations(1250)
RUNS_EACH = 6
FILES = ["origin.json", "slices.json", "input_hashes.json", "copies.npz", "keys/00001.npz"]
FILES += ["slices/00001/progress.json", "slices/00001/carried-00001.npz", "reference_only"]
# In whole runs; of the others make test tries only the reading, as of these.
TRIED_NOW = ["origin.json", "copies.npz", "slices/00001/progress.json", "reference_only"]
READ_AGAIN_AND_AGAIN = [name for name in FILES if name != "reference_only"]


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_document_tokenizer(str(PROJECT_DIR / "data/sample/tokenizer"), add_bos=False, backend="auto")
    monkeypatch.setattr(tokenizers, "load_document_tokenizer", lambda *_args, **_options: tokenizer)
    monkeypatch.setattr(system_files.os, "fsync", lambda _: None)
    monkeypatch.setattr(progress, "MAX_LISTED", 1)  # so that what is only counted goes over an interruption, too


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "news.jsonl"
    with path.open("w") as file:
        for number in range(60):
            file.write(json.dumps({"text": f"story {number % 50} of many " * (number % 5 + 1)}) + "\n")
            file.write("no JSON\n" * (number % 3 == 0))
        file.write("\n\n")
    return path


def preprocessed(corpus: Path, store: Path) -> dict[str, str]:
    """The digests of all files of the store that preprocess.py makes."""
    flags = ["--data_files", corpus, "--block_length", 8, "--split", "8,1,1", "--output_dir", store]
    flags += ["--num_slices", 2, "--tokens_per_shard", 60, "--exact_duplicates", "--max_skipped_fraction", 0.5]
    preprocess.main([str(word) for word in [*flags, "--num_workers", 1]])
    paths = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def partial(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run leaves behind that ends after the second section of the second slice."""

    class EndError(Exception):
        pass

    def end_section(writer: SliceWriter) -> None:
        ended(writer)
        if writer._folder.name == "00001" and writer.progress.num_sections == 2:
            raise EndError

    ended = SliceWriter._end_section
    with monkeypatch.context() as patch:
        patch.setattr(SliceWriter, "_end_section", end_section)
        patch.setattr("pretraining.data.input.reading.BATCH_BYTES", 2000)
        with pytest.raises(EndError):
            preprocessed(corpus, tmp_path / "left")
    return tmp_path / "left.partial"


def comparable(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return repr({name: comparable(part) for name, part in value.items()})
    return repr(value.tolist() if hasattr(value, "tolist") else value)


def copies_of(path: Path) -> list[object]:
    copies = Duplicates(path, ["a"])
    return [copies.original_of(0, line) for line in range(70)]


def slices_of(path: Path) -> object:
    with PartialStore(path.parent.with_suffix("")) as store:
        return store.slices([], 2)


READERS: dict[str, Callable[[Path], Any]] = {
    "origin.json": lambda path: read_record(path, lambda content: from_json(StoreSpec, content), remedy="delete it"),
    "slices.json": slices_of,
    "input_hashes.json": read_hashes,
    "copies.npz": copies_of,
    "keys/00001.npz": lambda path: read_arrays(path, remedy="delete it"),
    "slices/00001/progress.json": lambda path: read_progress(path.parent),
    "slices/00001/carried-00001.npz": read_carried,
}


@pytest.mark.parametrize("name", READ_AGAIN_AND_AGAIN)
def test_what_is_read_is_what_was_written_or_is_refused_by_name(
    partial: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", MUTATIONS_EACH)
    path = partial / name
    content = path.read_bytes()
    expected = comparable(READERS[name](path))
    num_refused = 0
    for number, damaged in enumerate(itertools.islice(mutations(content, seed=len(name)), MUTATIONS_EACH)):
        path.write_bytes(damaged)
        found, refusal = result_or_refusal(READERS[name], path)
        if refusal is not None:
            num_refused += 1
            assert refusal.startswith(f"{path}: is damaged"), number
            assert "; delete " in refusal, number
            assert refusal.isprintable(), number
        else:
            assert comparable(found) in ({expected, "{}"} if name == "input_hashes.json" else {expected}), number
    assert num_refused > MUTATIONS_EACH / 2 or name == "input_hashes.json"


@pytest.mark.parametrize(
    "name", [name if name in TRIED_NOW else pytest.param(name, marks=pytest.mark.long) for name in FILES]
)
def test_the_same_command_makes_the_same_store_or_says_what_to_delete(
    corpus: Path, partial: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is followed then, and the store is that of a run that nothing disturbed."""
    monkeypatch.setattr("pretraining.data.input.reading.BATCH_BYTES", 2000)
    expected = preprocessed(corpus, tmp_path / "whole")
    content = (partial / name).read_bytes() if (partial / name).exists() else b"other ids"
    for number, damaged in enumerate(itertools.islice(mutations(content, seed=7), RUNS_EACH)):
        store = tmp_path / f"again-{number}"
        shutil.copytree(partial, path := store.with_suffix(".partial"))
        (path / name).write_bytes(damaged)
        found, refusal = result_or_refusal(preprocessed, corpus, store)
        if refusal is not None:
            assert refusal.startswith(f"{path / name}: is damaged"), number
            remove(remedy_in(refusal, path / name))
            found = preprocessed(corpus, store)
        assert found == expected, number
        shutil.rmtree(store)


def result_or_refusal(work: Callable[..., T], *words: Path) -> tuple[T | None, str | None]:
    """What `work` returns, or the one problem of its UserError; any other error is a failure."""
    try:
        return work(*words), None
    except UserError as error:
        (problem,) = error.problems
        return None, problem


def remedy_in(message: str, path: Path) -> Path:
    """What the message says is to be deleted."""
    word = message.split("; delete ")[1].split()[0].rstrip(";")
    return path if word == "it" else Path(word)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
