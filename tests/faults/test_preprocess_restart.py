"""preprocess.py killed, starved and disturbed: nothing finished is lost, the bytes are those of an undisturbed run."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretraining.data.build.progress import read_progress
from tests.adversarial.drivers.mutations import num_mutations
from tests.conftest import PROJECT_DIR, Done, assert_one_error, python, run
from tests.programs.launching import run_forked, run_forked_fine
from tests.unit.data.input.test_token_files import some_documents, write_flat, write_megatron

SAMPLE = PROJECT_DIR / "data/sample/news.jsonl"
KILLED_AT_STEP = PROJECT_DIR / "tests/faults/drivers/preprocess/killed_at_step.py"
MORE_NAME = "more.jsonl"
NUM_KILLS = max(8, num_mutations(50))  # of which half for each packing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 MB of text that differs from story to story, some of it twice, and lines that are no documents.

    As much stands beside it.
    """
    folder = tmp_path_factory.mktemp("corpus")
    stories = [json.loads(line)["text"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    for name, copies in (("news.jsonl", range(19)), (MORE_NAME, range(19, 38))):
        with (folder / name).open("w", encoding="utf-8") as file:
            for copy in copies:
                for number, story in enumerate(stories):
                    file.write(json.dumps({"text": f"{copy if number % 50 else 0} {story}"}) + "\n")
                file.write("no JSON\n\n")
    return folder / "news.jsonl"


def flags(corpus: Path, packing: str, *more: object) -> list[object]:
    # best_fit fits what it has read of half as much into one shard.
    files = [corpus, corpus.with_name(MORE_NAME)] if packing == "best_fit" else [corpus]
    words = ["--data_files", *files, "--packing", packing, "--block_length", 128, "--split", "80,15,5"]
    return [*words, "--tokens_per_shard", 100_000, "--num_slices", 2, "--exact_duplicates", *more]


def digests(store: Path) -> dict[str, str]:
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# Both are killed at any instant; what else may happen goes the same way for both.
BOTH = pytest.mark.parametrize("packing", ["concat", "best_fit"], indirect=True, scope="module")


@pytest.fixture(scope="module", params=["concat", pytest.param("best_fit", marks=pytest.mark.long)])
def packing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, packing: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp(packing) / "blocks"
    run_forked_fine(*python("preprocess.py", *flags(corpus, packing), "--output_dir", store))
    assert len([path for path in digests(store) if path.startswith("data/train")]) >= 5
    return digests(store)


def do_at_step(step: int, command: list[object], what: str | None = None) -> Done:
    """Kill a program at its n-th change of the disk, or have it do something else."""
    return run_forked(sys.executable, KILLED_AT_STEP, step, *command[1:], env={} if what is None else {"DO": what})


def killed_at_a_step(command: list[object], chance: random.Random) -> bool:
    """Whether the run was killed before its end."""
    step = chance.choice([1, 2, 3, 5, 8, 13, 21, 34, 55])
    return do_at_step(step, command).returncode == -signal.SIGKILL


def killed_at_a_time(command: list[object], chance: random.Random, partial: Path) -> bool:
    """Whether the run was killed before its end, up to 0.3 s after it opened its folder."""
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (partial / "lock").exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        return process.wait() == -signal.SIGKILL


@BOTH
@pytest.mark.guarantee("preprocess.py, killed at any instant, resumes to the same bytes.")
def test_killed_at_any_instant_the_same_command_goes_on_to_the_same_bytes(
    corpus: Path,
    packing: str,
    undisturbed: dict[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    chance = random.Random(packing)
    store, partial = tmp_path / "blocks", tmp_path / "blocks.partial"
    command = python("preprocess.py", *flags(corpus, packing), "--output_dir", store)
    num_kills = num_finished = 0
    while num_kills < NUM_KILLS // 2:
        by_time = num_kills % 2 == 0
        if killed_at_a_time(command, chance, partial) if by_time else killed_at_a_step(command, chance):
            num_kills += 1
            assert not store.exists() or digests(store) == undisturbed, "a folder of this name is complete"
        else:
            num_finished += 1
            assert digests(store) == undisturbed
        if store.exists():
            shutil.rmtree(store)
    run_forked_fine(*command)
    assert digests(store) == undisturbed
    assert not partial.exists()
    record_property("killed", num_kills)


def test_a_run_on_token_ids_goes_on_to_the_same_bytes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Files of Megatron, in slices, and of nanoGPT, read from the middle on."""
    documents = some_documents(4000, longest=500)
    paths = [write_megatron(tmp_path / "a.bin", documents[:2500]), write_flat(tmp_path / "b.bin", documents[2500:])]
    words = ["--data_files", *paths, "--block_length", 128, "--split", "80,15,5", "--tokens_per_shard", 100_000]
    command = python("preprocess.py", *words, "--num_slices", 2, "--output_dir")
    run_forked_fine(*command, tmp_path / "undisturbed")
    for step in (20, 35, 50):
        killed = do_at_step(step, [*command, tmp_path / "blocks"])
        assert killed.returncode == -signal.SIGKILL
    assert "resuming from" in run_forked_fine(*command, tmp_path / "blocks").stderr
    assert digests(tmp_path / "blocks") == digests(tmp_path / "undisturbed")
    record_property("killed", 3)


def test_only_the_unfinished_section_is_made_again(
    corpus: Path, packing: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    store, partial = tmp_path / "blocks", tmp_path / "blocks.partial"
    command = python("preprocess.py", *flags(corpus, packing), "--output_dir", store)
    assert do_at_step(45, command).returncode == -signal.SIGKILL
    progress = json.loads((partial / "slices/00000/progress.json").read_text())["content"]
    assert progress["num_sections"] >= 1
    finished = {path: path.stat().st_mtime_ns for path in (partial / "slices/00000").glob("*-00000.parquet")}
    assert finished
    assert f"resuming from {store}.partial\n" in run_forked_fine(*command).stderr
    moved = {path.stat().st_mtime_ns for path in store.rglob("*.parquet")}
    assert set(finished.values()) <= moved


@pytest.mark.parametrize("step", [45, "naming"])
def test_what_was_damaged_since_it_was_finished_is_made_again(
    corpus: Path, packing: str, undisturbed: dict[str, str], tmp_path: Path, step: int | str
) -> None:
    """One bit in a finished file of any kind; also in a shard that assembly has moved to its place already."""
    store, partial = tmp_path / "blocks", tmp_path / "blocks.partial"
    command = python("preprocess.py", *flags(corpus, packing), "--output_dir", store)
    if step == "naming":
        what = "from pretraining.data.build import assemble; assemble.write_card = lambda *_: 1 / 0"
        assert "ZeroDivisionError" in do_at_step(1, command, what).stderr
        damaged = [next(partial.glob("data/train-00001-*.parquet")), *partial.glob("slices/00001/skipped-*")]
    else:
        assert do_at_step(step, command).returncode == -signal.SIGKILL
        folder = partial / "slices/00000"
        progress = read_progress(folder)
        assert progress is not None
        damaged = [folder / name for name in progress.file_names() if not name.startswith(("validation", "test"))]
        assert {path.name.split("-")[0] for path in damaged} == {"train", "documents", "skipped", "carried"}
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    done = run_forked_fine(*command)
    for path in damaged:
        assert step == "naming" or f"{path}: has the SHA-256" in done.stderr
    assert done.stderr.count("writing its slice again") == len(damaged)
    assert digests(store) == undisturbed


def test_a_store_that_lacks_only_its_name_is_given_it(
    corpus: Path, packing: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """As it is when a run is killed just before the end; what is refused deletes nothing."""
    store, partial = tmp_path / "blocks", tmp_path / "blocks.partial"
    command = python("preprocess.py", *flags(corpus, packing), "--output_dir", store)
    run_forked_fine(*command)
    times = {path.name: path.stat().st_mtime_ns for path in store.rglob("*.parquet")}
    store.rename(partial)
    assert_one_error(run_forked(*command, "--seed", 7), "seed 42, not 7", "use its flags to resume it")
    shard = next(partial.glob("data/train-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"?")
    assert_one_error(run_forked(*command), f"{shard} has the SHA-256", "delete the folder and start again")
    shard.write_bytes(content)
    os.utime(shard, ns=(times[shard.name], times[shard.name]))
    run_forked_fine(*command)
    assert digests(store) == undisturbed
    assert {path.name: path.stat().st_mtime_ns for path in store.rglob("*.parquet")} == times, "nothing is made again"


def test_a_dead_rank_loses_only_its_unfinished_shards(
    corpus: Path,
    packing: str,
    undisturbed: dict[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("killed", 1)
    store, partial = tmp_path / "blocks", tmp_path / "blocks.partial"
    command = python("preprocess.py", *flags(corpus, packing), "--output_dir", store)
    ranks = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", 2]
    done = run(*ranks, sys.executable, KILLED_AT_STEP, 20, *command[1:], env={"KILLED_RANK": "1"})
    assert done.returncode != 0
    assert not store.exists()
    finished = [path.parent.name for path in partial.glob("slices/*/progress.json")]
    assert finished, "what the ranks had finished stays"
    assert f"resuming from {store}.partial\n" in run_forked_fine(*command).stderr, "one process is enough"
    assert digests(store) == undisturbed


def test_two_runs_into_one_folder_refuse_each_other(corpus: Path, tmp_path: Path) -> None:
    command = python("preprocess.py", *flags(corpus, "concat"), "--output_dir", tmp_path / "blocks")
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True) as first:
        while not (tmp_path / "blocks.partial/origin.json").exists():
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGSTOP)
        done = run_forked(*command)
        os.kill(first.pid, signal.SIGCONT)
        assert_one_error(done, f"another preprocess.py (process {first.pid}) is writing", "wait for it")
        assert first.wait() == 0, first.stderr
    assert (tmp_path / "blocks/manifest.json").is_file()


def test_an_unfinished_folder_of_other_flags_or_input_is_refused(corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "news.jsonl"
    shutil.copy(corpus, own)
    command = python("preprocess.py", *flags(own, "concat"), "--output_dir", tmp_path / "blocks")
    assert do_at_step(45, command).returncode == -signal.SIGKILL
    before = digests(tmp_path / "blocks.partial")
    assert_one_error(
        run_forked(*command, "--seed", 7, "--add_bos"),
        "token_rules bos_token_id=None, not bos_token_id=1; seed 42, not 7",
    )
    assert_one_error(run_forked(*command, "--min_characters", 5), "cleaning min_characters=None, not min_characters=5")
    with own.open("a") as file:
        file.write("{}\n")
    assert_one_error(run_forked(*command), f"data_files {own}", "blocks.partial", "delete that folder")
    assert {name: digest for name, digest in digests(tmp_path / "blocks.partial").items() if name != "lock"} == {
        name: digest for name, digest in before.items() if name != "lock"
    } | {"input_hashes.json": digests(tmp_path / "blocks.partial")["input_hashes.json"]}


def test_ctrl_c_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    command = python("preprocess.py", *flags(corpus, "concat"), "--output_dir", tmp_path / "blocks")
    done = do_at_step(20, command, "os.kill(os.getpid(), signal.SIGINT)")
    assert done.returncode == 130
    resumes = "run the same command again to resume from the last finished shard" in done.stderr
    assert resumes == (tmp_path / "blocks.partial").exists()
    assert resumes, "the keys of the documents stay"
    assert "Traceback" not in done.output
    run_forked_fine(*command)


def test_a_name_that_is_taken_meanwhile_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    store, partial = tmp_path / "blocks", tmp_path / "blocks.partial"
    command = python("preprocess.py", *flags(corpus, "concat"), "--output_dir", store)
    what = f"os.mkdir({str(store)!r}); open('{store}/thesis.txt', 'w').write('years of work')"
    done = do_at_step(20, command, what)
    assert done.returncode == 2
    assert "Directory not empty" in done.stderr
    assert (partial / "manifest.json").is_file()
    (store / "thesis.txt").unlink()
    run_forked_fine(*command)
    assert (store / "manifest.json").is_file()


def test_input_that_changes_while_it_is_read_makes_no_store(corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "news.jsonl"
    shutil.copy(corpus, own)
    command = python("preprocess.py", *flags(own, "concat"), "--output_dir", tmp_path / "blocks")
    done = do_at_step(20, command, f"open({str(own)!r}, 'a').write('{{}}')")
    assert done.returncode == 2
    assert f"--data_files {own}: changed during reading" in done.stderr
    assert not (tmp_path / "blocks").exists()


def test_a_folder_of_somebody_else_is_not_taken_for_an_unfinished_store(tmp_path: Path) -> None:
    (tmp_path / "blocks.partial").mkdir()
    for name in ("lock", "thesis.txt"):
        (tmp_path / "blocks.partial" / name).write_text("years of work")
    assert_one_error(
        run_forked(*python("preprocess.py", "--output_dir", tmp_path / "blocks")), "is in the way of --output_dir"
    )
    assert (tmp_path / "blocks.partial/thesis.txt").read_text() == "years of work"


@pytest.mark.guarantee("preprocess.py on a full disk ends with one line and resumes when there is space.")
def test_a_full_disk_ends_cleanly_and_the_run_goes_on_when_there_is_room(
    corpus: Path, packing: str, undisturbed: dict[str, str], small_disk: Path
) -> None:
    store = small_disk / "blocks"
    command = python("preprocess.py", *flags(corpus, packing), "--output_dir", store)
    (small_disk / "other").write_bytes(bytes(2_500_000))
    done = run_forked(*command)
    place = f"--output_dir {store}: cannot be written (No space left"
    assert_one_error(done, place, "run the same command again to resume")
    assert not store.exists()
    assert list((small_disk / "blocks.partial").glob("slices/*/progress.json"))
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert f"resuming from {store}.partial\n" in run_forked_fine(*command).stderr
    assert digests(store) == undisturbed


def test_a_folder_that_may_not_be_written(corpus: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run_forked(*python("preprocess.py", *flags(corpus, "concat"), "--output_dir", small_disk / "blocks"))
    assert_one_error(done, "cannot be written (Read-only file system)", "choose another folder")
