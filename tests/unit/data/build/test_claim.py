"""The origin of a new store is recorded as soon as the input is hashed; a run before that leaves nothing to resume."""

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build.claim import StoreClaim
from pretraining.data.build.partial_store import NO_DOCUMENT_NAME, ORIGIN_NAME, SLICES_DIR, PartialStore
from pretraining.data.build.progress import PROGRESS_NAME, SliceProgress
from pretraining.data.input.files import InputFile
from pretraining.data.input.find import find_inputs
from pretraining.data.input.hashes import Hashes, start_hashing
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from pretraining.system.files import sha256_of
from tests.conftest import PROJECT_DIR

TOKENIZER = load_document_tokenizer(str(PROJECT_DIR / "data/sample/tokenizer"), add_bos=False)


class Run:
    """What the first process has: files, flags, a locked store, and hashes that come later."""

    def __init__(self, folder: Path, **flags: object) -> None:
        self.data = folder / "a.jsonl"
        self.data.exists() or self.data.write_text('{"text": "one"}\n')
        self.arguments = PreprocessArguments(data_files=[str(self.data)], output_dir=folder / "blocks", **flags)
        self.files: list[InputFile] = list(find_inputs([str(self.data)]))
        self.hashes: Future[Hashes] = Future()
        self.store = PartialStore(self.arguments.output_dir)
        self.claim = StoreClaim(self.store, self.arguments, self.files, TOKENIZER, self.hashes)
        self.origin_path = self.store.folder / ORIGIN_NAME

    def hash(self) -> None:
        self.hashes.set_result(start_hashing(self.files, self.arguments.output_dir).result())

    def leave_progress(self) -> Path:
        path = self.store.folder / SLICES_DIR / "00000" / PROGRESS_NAME
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        return path


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    with run.store:
        yield run


def test_the_origin_is_recorded_as_soon_as_the_input_is_hashed(first: Run) -> None:
    origin, manifest = first.claim.begin()
    assert manifest is None
    assert [source.sha256 for source in origin.sources] == [""]
    first.claim.advance()
    assert not first.origin_path.exists()
    first.hash()
    first.claim.advance()
    assert first.origin_path.exists()
    assert [source.sha256 for source in first.claim.finish().sources] == [sha256_of(first.data)]


def test_the_end_waits_for_the_hashes(first: Run) -> None:
    first.claim.begin()
    first.hash()
    assert [source.sha256 for source in first.claim.finish().sources] == [sha256_of(first.data)]
    assert first.origin_path.exists()


def test_other_flags_are_accepted_after_a_run_that_a_process_ended_as_it_found_no_document(tmp_path: Path) -> None:
    with (first := Run(tmp_path, text_field="txt")).store:
        first.hash()
        first.claim.begin()
        first.claim.advance()
        SliceProgress().write(first.leave_progress().parent)
        (first.store.folder / NO_DOCUMENT_NAME).touch()
    assert first.origin_path.exists()
    with (second := Run(tmp_path)).store:
        second.hash()
        second.claim.begin()
        second.claim.advance()
        assert second.origin_path.exists()


def test_without_an_origin_nothing_is_resumed_and_with_one_everything(tmp_path: Path) -> None:
    with (first := Run(tmp_path)).store:
        first.claim.begin()
        left = first.leave_progress()
    with (second := Run(tmp_path)).store:
        second.claim.begin()
        assert not left.exists()
        left = second.leave_progress()
        second.hash()
        second.claim.advance()
    with (third := Run(tmp_path)).store:
        third.hash()
        origin, _ = third.claim.begin()
        assert left.exists()
        assert [source.sha256 for source in origin.sources] == [sha256_of(third.data)]
    with (other := Run(tmp_path, seed=9)).store:
        other.hash()
        with pytest.raises(UserError, match="an unfinished run with other input or flags"):
            other.claim.begin()


def test_a_file_that_cannot_be_hashed_ends_the_run_at_once(first: Run) -> None:
    first.claim.begin()
    first.hashes.set_exception(UserError("cannot be read"))
    with pytest.raises(UserError, match="cannot be read"):
        first.claim.advance()


def test_a_file_that_changes_afterwards_is_an_error_unless_its_content_is_the_same(first: Run) -> None:
    first.claim.begin()
    first.hash()
    os.utime(first.data, ns=(1, 1))
    first.claim.finish()
    first.data.write_text('{"text": "two"}\n')
    with pytest.raises(UserError, match="changed during reading; delete"):
        first.claim.finish()
