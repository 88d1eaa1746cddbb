import os
import tempfile
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.system.private_dirs import private_dir

NOBODY = 65534


@pytest.fixture(autouse=True)
def shared_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_processes_that_agree_on_a_name_meet_there_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        folder = private_dir("run-7")
    finally:
        os.umask(umask)
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "note").write_text("blocks")
    assert (private_dir("run-7") / "note").read_text() == "blocks"
    assert private_dir("run-8") != folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_not_trusted() -> None:
    folder = private_dir("run-7")
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(UserError, match=f"owner {NOBODY}.*nothing in it is trusted.*TMPDIR"):
        private_dir("run-7")


def test_a_folder_that_others_can_open_is_not_trusted() -> None:
    private_dir("run-7").chmod(0o750)
    with pytest.raises(UserError, match="drwxr-x---"):
        private_dir("run-7")


def test_links_are_not_followed(tmp_path: Path) -> None:
    theirs, name = tmp_path / "theirs", private_dir("run-7").name
    theirs.mkdir(mode=0o700)
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to(theirs)
    with pytest.raises(UserError, match="is not a folder that only this user can open"):
        private_dir("run-7")
    assert list(theirs.iterdir()) == []


def test_a_temporary_folder_that_takes_nothing_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"cannot be created.*TMPDIR"):
        private_dir("run-7")
