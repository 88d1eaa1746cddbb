"""preprocess.py that makes slices in separate processes: the same bytes, also after any of them was killed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pretraining.system.processes import ProcessHandle, command_words, descendants
from tests.conftest import HANG_SECONDS, PROJECT_DIR, Done, assert_one_error, python
from tests.programs.launching import run_forked, run_forked_fine
from tests.unit.data.build.test_partial_store import digests, stories

pytestmark = pytest.mark.launch
DRIVER = PROJECT_DIR / "tests/faults/drivers/preprocess/small_processes.py"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """6 MB in four slices of several sections, with duplicates, and lines that are no documents."""
    path = tmp_path_factory.mktemp("corpus") / "news.jsonl"
    with path.open("w") as file:
        for copy in range(30):
            lines = [json.dumps({"text": f"{copy if n % 9 else 0} {story}"}) for n, story in enumerate(stories())]
            file.write("\n".join([*lines, "no JSON", ""]))
    words = ["--data_files", path, "--block_length", 128, "--split", "80,15,5", "--num_workers", 4, "--num_slices", 4]
    return [*words, "--tokens_per_shard", 100_000, "--exact_duplicates"]


@pytest.fixture(scope="module")
def undisturbed(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("one") / "blocks"
    run_forked_fine(*python("preprocess.py", *flags, "--output_dir", store))
    return digests(store)


@pytest.mark.long  # after a kill: the test below
def test_the_bytes_are_those_of_one_process(flags: list[object], undisturbed: dict[str, str], tmp_path: Path) -> None:
    run_forked_fine(*python(DRIVER, *flags, "--output_dir", tmp_path / "blocks"))
    assert digests(tmp_path / "blocks") == undisturbed


@pytest.mark.parametrize("victim", [pytest.param("first", marks=pytest.mark.long), "worker"])
def test_a_killed_process_takes_the_others_with_it_and_nothing_finished_is_lost(
    flags: list[object], undisturbed: dict[str, str], victim: str, tmp_path: Path
) -> None:
    store = tmp_path / "blocks"
    command = [str(word) for word in python(DRIVER, *flags, "--output_dir", store)]
    with subprocess.Popen(command, cwd=PROJECT_DIR, stderr=subprocess.PIPE, text=True) as process:
        while not list(store.with_name("blocks.partial").glob("slices/*/progress.json")):
            assert process.poll() is None
            time.sleep(0.01)
        workers = [one for one in descendants(process.pid) if "spawn_main" in " ".join(command_words(one.pid))]
        assert len(workers) == 2
        os.kill(process.pid if victim == "first" else workers[0].pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=HANG_SECONDS)
    wait_until_gone(workers)
    if victim == "worker":
        assert_one_error(Done(process.returncode, "", errors), "ended with exit code -9", "run the same command again")
    run_forked_fine(*python(DRIVER, *flags, "--output_dir", store))
    assert digests(store) == undisturbed


def test_what_a_process_finds_wrong_is_one_line(flags: list[object], tmp_path: Path) -> None:
    words = [*flags, "--text_field", "body", "--output_dir", tmp_path / "blocks"]
    assert_one_error(run_forked(*python(DRIVER, *words)), "no field body", "use the right --text_field")
    assert not (tmp_path / "blocks.partial").exists()


def wait_until_gone(processes: list[ProcessHandle]) -> None:
    deadline = time.monotonic() + 2
    while any(process.is_alive() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)
