import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.system.locks import is_locked, lock_file
from tests.conftest import PROJECT_DIR
from tests.fakes.odd_disk import odd_disk

# Reads a number and writes the next one, slowly: with two at once, one is lost.
COUNT = """
import sys, time
from pathlib import Path
from pretraining.system.locks import wait_for_lock
counter = Path(sys.argv[1])
for _ in range(20):
    with wait_for_lock(counter.with_suffix(".lock")):
        number = int(counter.read_text())
        time.sleep(0.002)
        counter.write_text(str(number + 1))
"""


@pytest.mark.parametrize("flock", [None, "ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_one_at_a_time_with_and_without_locks(flock: str | None, odd_disk_library: Path, tmp_path: Path) -> None:
    place, temporary = tmp_path / "nfs", tmp_path / "tmp"
    place.mkdir()
    temporary.mkdir()
    (place / "counter").write_text("0")
    odd = odd_disk(odd_disk_library, place, flock=flock) if flock else {}
    command = [sys.executable, "-c", COUNT, str(place / "counter")]
    env = {**os.environ, "TMPDIR": str(temporary), **odd}
    counting = [subprocess.Popen(command, cwd=PROJECT_DIR, env=env) for _ in range(3)]
    assert [process.wait(timeout=60) for process in counting] == [0, 0, 0]
    assert (place / "counter").read_text() == "60"


def test_a_lock_is_seen_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    assert not is_locked(path)
    script = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert is_locked(path)
    with path.open("w") as file:
        assert not lock_file(file.fileno(), path)
        holder.kill()
        holder.communicate()
        assert lock_file(file.fileno(), path)
    assert not is_locked(path)


@pytest.mark.launch
def test_two_processes_without_locks_make_synthetic_blocks_once(odd_disk_library: Path, tmp_path: Path) -> None:
    script = (
        "import json; from pretraining.data.synthetic import synthetic_mixture\n"
        "store = synthetic_mixture(block_length=64, vocab_size=500).first\n"
        "print(json.dumps([str(store.folder), store.manifest.splits['train'].num_blocks]))"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    env |= odd_disk(odd_disk_library, tmp_path, flock="ENOLCK")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=PROJECT_DIR, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert found[0] == found[1]
    assert not list(tmp_path.rglob("*.partial"))
    assert sum(b"has no locks" in err for _, err in outputs) == 1, "only one makes it"
