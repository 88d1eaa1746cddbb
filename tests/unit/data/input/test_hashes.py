"""The input is hashed before most of the program is imported, once, and not while it changes."""

import os
import sys
from pathlib import Path

import pytest

from pretraining.data.build.working_files import INPUT_HASHES_NAME, partial_dir, write_record
from pretraining.data.input import hashes
from pretraining.data.input.find import find_inputs
from pretraining.data.input.hashes import hash_key, start_hashing
from pretraining.errors import UserError
from pretraining.system.files import sha256_of
from tests.conftest import run_fine


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    return path


def hash_at_once(data: Path) -> str:
    (found,) = start_hashing(find_inputs([str(data)]), data.parent / "blocks").result().values()
    return found


def test_a_file_is_hashed(data: Path) -> None:
    assert hash_at_once(data) == sha256_of(data)


def test_what_an_earlier_run_has_hashed_is_not_hashed_again(data: Path) -> None:
    (file,) = find_inputs([str(data)])
    folder = partial_dir(data.parent / "blocks")
    folder.mkdir()
    write_record(folder / INPUT_HASHES_NAME, {hash_key(file): "earlier"})
    assert hash_at_once(data) == "earlier"
    os.utime(data, ns=(1, 1))
    assert hash_at_once(data) == sha256_of(data)


def test_a_file_that_changes_while_it_is_hashed_is_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_and_touch(path: Path) -> str:
        os.utime(path, ns=(1, 1))
        return sha256_of(path)

    monkeypatch.setattr(hashes, "sha256_of", hash_and_touch)
    with pytest.raises(UserError, match="changed during reading; run the same command again"):
        hash_at_once(data)


def test_little_is_imported_before(data: Path) -> None:
    code = "import sys, preprocess; early = set(sys.modules); import pretraining.data.input.hashes; "
    code += (
        "print(len({'numpy', 'pyarrow'} & early), len({'tokenizers', 'pyarrow.parquet', 'tqdm'} & set(sys.modules)))"
    )
    assert run_fine(sys.executable, "-c", code).stdout.split() == ["0", "0"]
