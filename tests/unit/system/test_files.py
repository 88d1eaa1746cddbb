import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.system.files import HashedFile, private_dir, sha256_of
from tests.conftest import PROJECT_DIR, assert_one_error, run, run_fine
from tests.fakes.odd_disk import odd_disk
from tests.programs.launching import NUM_STEPS, train

OLD, NEW = b"old" * 1000, b"new" * 1_000_000
WRITE = "from pathlib import Path; from pretraining.system.files import write_atomically\n"
WRITE += f"write_atomically(Path(%r), {NEW[:3]!r} * {len(NEW) // 3})"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "failure", [{"write": "ENOSPC"}, {"fsync_file": "EIO"}, {"rename": "EACCES"}, {"open": "EACCES"}], ids=str
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    failure: dict[str, str], odd_disk_library: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes(OLD)
    env = odd_disk(odd_disk_library, tmp_path, **failure)
    done = run(sys.executable, "-c", WRITE % str(tmp_path / "run.json"), env=env)
    assert done.returncode != 0
    assert os.strerror(int(next(value for name, value in env.items() if value.isdigit()))) in done.stderr
    assert files(tmp_path) == {"run.json": OLD}


@pytest.mark.parametrize("error", ["EINVAL", "ENOTSUP", "EBADF"])
def test_folders_that_cannot_be_synced_take_files_all_the_same(
    error: str, odd_disk_library: Path, tmp_path: Path
) -> None:
    env = odd_disk(odd_disk_library, tmp_path, fsync_folder=error)
    run_fine(sys.executable, "-c", WRITE % str(tmp_path / "run.json"), env=env)
    assert files(tmp_path) == {"run.json": NEW}


def test_a_disk_that_fails_to_sync_is_an_error(odd_disk_library: Path, tmp_path: Path) -> None:
    done = run(
        sys.executable,
        "-c",
        WRITE % str(tmp_path / "run.json"),
        env=odd_disk(odd_disk_library, tmp_path, fsync_folder="EIO"),
    )
    assert "Input/output error" in done.stderr


def test_whoever_opens_it_finds_the_old_file_or_the_new_one_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(OLD)
    script = WRITE.replace("write_atomically(Path", "while True: print(flush=True); write_atomically(Path")
    for number in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", script % str(path)], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.0007 * number)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert path.read_bytes() in (OLD, NEW)
        assert set(files(tmp_path)) <= {"run.json", "run.json.tmp"}
    run_fine(sys.executable, "-c", WRITE % str(path))
    assert files(tmp_path) == {"run.json": NEW}


@pytest.mark.launch
@pytest.mark.guarantee("Disks without locks or folder syncs: the same bytes.")
def test_a_block_store_is_the_same_on_a_disk_without_locks_and_folder_syncs(
    odd_disk_library: Path, sample_store: Path, tmp_path: Path
) -> None:
    command = ["preprocess.py", "--block_length", "64", "--split", "90,5,5", "--output_dir", tmp_path / "blocks"]
    env = odd_disk(odd_disk_library, tmp_path, fsync_folder="EINVAL", flock="ENOLCK")
    done = run_fine(sys.executable, *command, env=env)
    assert "blocks.partial: this file system has no locks" in done.stderr
    shards = [
        [
            shard["sha256"]
            for split in json.loads((store / "manifest.json").read_bytes())["splits"].values()
            for shard in split["shards"]
        ]
        for store in (tmp_path / "blocks", sample_store)
    ]
    assert shards[0] == shards[1] != []


@pytest.mark.launch
@pytest.mark.parametrize("failure", [{"write": "ENOSPC"}, {"open": "EACCES"}], ids=str)
def test_a_block_store_on_a_disk_that_takes_nothing_is_one_error(
    failure: dict[str, str], odd_disk_library: Path, tmp_path: Path
) -> None:
    env = odd_disk(odd_disk_library, tmp_path, **failure)
    done = run(sys.executable, "preprocess.py", "--output_dir", tmp_path / "blocks", env=env)
    assert_one_error(done, str(tmp_path), os.strerror(int(env[f"ODD_{next(iter(failure)).upper()}"])))


# Long: a save is made of the writes of the tests above, and tests/unit/system/test_locks.py has such locks.
@pytest.mark.long
@pytest.mark.launch
def test_a_run_saves_on_a_disk_without_locks_and_folder_syncs(
    odd_disk_library: Path, sample_store: Path, tmp_path: Path
) -> None:
    env = odd_disk(odd_disk_library, tmp_path, fsync_folder="EINVAL", flock="ENOLCK")
    done = train("python", sample_store, tmp_path / "run", env=env)
    assert f"{tmp_path}/run: this file system has no locks" in done.stderr
    assert (tmp_path / f"run/checkpoint-{NUM_STEPS}/complete.json").is_file()
    assert (tmp_path / "run/model/model.safetensors").is_file()


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


def test_a_file_is_hashed_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(100))  # of a run that was killed
    file = HashedFile(path)
    for number in (1, 0, 30_000, 7):
        assert file.write(memoryview(bytes(8 * number)).cast("q")) == 8 * number
        file.flush()
        assert (file.tell(), file.num_bytes, file.sha256) == (*[path.stat().st_size] * 2, sha256_of(path))
    file.write(b"the end")
    file.close()
    assert (file.num_bytes, file.sha256) == (8 * 30_008 + 7, sha256_of(path))


@pytest.mark.parametrize("num_bytes", [1, 1 << 20])
def test_a_full_disk_is_an_error_of_the_file(num_bytes: int) -> None:
    file = HashedFile(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left") as found:
        list(map(file.write, [bytes(num_bytes), bytes(1 << 20)]))
    assert found.value.errno == errno.ENOSPC
