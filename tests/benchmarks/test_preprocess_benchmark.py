"""The comparison of preprocess.py measures whole process trees, counts what is lost, and says what did not run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.preprocess import measured_process
from benchmarks.preprocess.arms import OURS, arms, checkout, chosen, our_command
from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.runs import Series, add_run
from benchmarks.preprocess.sized_inputs import huge_line, sized_inputs, texts_of
from benchmarks.preprocess.stages import arithmetic, stage_rows
from benchmarks.preprocess.stages_run import IMPORTS, REST, STAGES, StageTimes
from benchmarks.preprocess.token_counts import InputCounts, compare, count_input
from benchmarks.results import spread, table, write_section
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR, run_fine
from tests.programs.launching import run_forked_fine

SAMPLE_TOKENIZER = PROJECT_DIR / "data/sample/tokenizer"
SAMPLE_CORPUS = PROJECT_DIR / "data/sample/news.jsonl"
# A child that holds 150 MB, says so through its parent, and waits to be let go.
CHILD_WITH_MEMORY = """
import subprocess, sys
held = "held = bytearray(150_000_000); print('held', flush=True); input()"
subprocess.run([sys.executable, "-c", held], check=True)
"""


def measured(words: list[str], tmp_path: Path) -> measured_process.Usage:
    return measured_process.run_measured(
        words, cwd=tmp_path, environment=dict(os.environ), log_path=tmp_path / "log.txt"
    )


def a_job(tmp_path: Path) -> Job:
    return Job(SAMPLE_CORPUS, tmp_path / "parts", SAMPLE_TOKENIZER, "</s>", 128, 2, tmp_path / "output")


def test_memory_of_child_processes_counts() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD_WITH_MEMORY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert 150_000_000 < measured_process.session_bytes(process.pid) < 250_000_000
        process.communicate(b"\n")
    assert process.returncode == 0


def test_a_whole_process_is_measured(tmp_path: Path) -> None:
    usage = measured([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path)
    assert usage.exit_code == 0
    assert usage.peak_bytes > 0
    assert usage.seconds > 0.5


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_process, "LIMIT_SECONDS", 0.3)
    usage = measured([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)
    assert usage.exit_code != 0


def test_a_failure_is_told_in_its_own_words_and_not_tried_again(tmp_path: Path) -> None:
    series = Series()
    for _ in range(2):
        add_run(series, [sys.executable, "-c", "import datatrove_of_another_planet"], a_job(tmp_path))
    assert series.usages == []
    assert series.failure == "ModuleNotFoundError: No module named 'datatrove_of_another_planet'"
    killed = Series()
    add_run(killed, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], a_job(tmp_path))
    assert killed.failure == "ended by signal 9"


def test_lost_and_changed_tokens_are_counted(tmp_path: Path) -> None:
    data_file = tmp_path / "input.jsonl"
    data_file.write_text(json.dumps({"text": "the the the </s> the"}) + "\n")
    counts = count_input(data_file, SAMPLE_TOKENIZER)
    (bos, eos) = (1, 2)
    assert {bos, eos} <= set(counts.special_ids)
    ids = np.repeat(np.arange(len(counts.histogram)), counts.histogram).astype(np.uint16)
    assert not {bos, eos} & set(ids.tolist())
    (tmp_path / "output").mkdir()

    def written(*arrays: object) -> tuple[int, int, int]:
        np.concatenate(arrays).astype(np.uint16).tofile(tmp_path / "output/ids.bin")
        found = compare(tmp_path / "output", counts)
        return found.num_special, found.num_missing, found.num_foreign

    assert written(ids, [eos]) == (1, 0, 0)
    assert written([bos], ids[1:], [eos]) == (2, 1, 0)
    assert written(ids[1:], [300]) == (0, 1, 1)


def test_a_section_is_replaced_in_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    for title, text in (("One", "a"), ("Two", "b"), ("One", "c"), ("Two", "d")):
        write_section(page, title, text)
    assert page.read_text() == "# Title\n\n## One\n\nc\n\n## Two\n\nd\n"


def test_figures_show_their_spread() -> None:
    assert spread([6.1, 6.3, 6.4]) == "6.3 (6.1 to 6.4)"
    assert table(["arm", "MB/s"], [["ours", "9"]]) == "| arm | MB/s |\n| --- | ---: |\n| ours | 9 |"


def test_inputs_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    for made in sized_inputs(SAMPLE_CORPUS, [1, 2], path):
        texts = list(texts_of(path))
        assert len(set(texts)) == len(texts) == made.num_documents
        assert sum(len(text.encode()) for text in texts) == made.text_bytes
        assert 0 <= path.stat().st_size - int(made.title.split()[0]) * 1_000_000 < 10_000
    line = huge_line(SAMPLE_CORPUS, 1, path)
    (text,) = texts_of(path)
    assert len(text.encode()) == line.text_bytes >= 999_999


@pytest.fixture(scope="module")
def counts() -> InputCounts:
    return count_input(SAMPLE_CORPUS, SAMPLE_TOKENIZER)


@pytest.mark.launch
def test_our_arm_keeps_every_token(tmp_path: Path, counts: InputCounts) -> None:
    words = ["--data_files", SAMPLE_CORPUS, "--tokenizer", SAMPLE_TOKENIZER, "--output_dir", tmp_path / "output/ours"]
    subprocess.run([sys.executable, "preprocess.py", "--block_length", "2", *words], cwd=PROJECT_DIR, check=True)
    assert compare(tmp_path / "output", counts).num_missing <= 3  # at most one token in the tail of each split


# The second is long: the first holds that what an arm writes is counted.
@pytest.mark.launch
@pytest.mark.parametrize(
    ("peer", "max_missing"), [("naive", 127), pytest.param("map_group", 2 * 127, marks=pytest.mark.long)]
)
def test_an_arm_that_needs_no_peer_keeps_every_token(
    peer: str, max_missing: int, tmp_path: Path, counts: InputCounts
) -> None:
    command = [sys.executable, "-m", f"benchmarks.preprocess.peers.{peer}", *a_job(tmp_path).words()]
    start = run_forked_fine if peer == "naive" else run_fine  # which keeps nothing in HF_HOME
    start(*command, env={"HF_HOME": str(tmp_path / "hf_home")})
    found = compare(tmp_path / "output", counts)
    assert found.num_missing - found.num_foreign <= max_missing
    assert found.num_tokens % 128 == 0


def test_the_time_of_a_stage_is_without_that_of_the_stages_it_calls(tmp_path: Path) -> None:
    times = StageTimes()

    def busy(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    def outer() -> None:
        busy(0.1)
        times.call("pack", busy, 0.3)

    times.call("encode", outer)
    assert 0.1 <= times.seconds["encode"] < 0.2
    assert 0.3 <= times.seconds["pack"] < 0.4


def test_every_stage_of_a_run_is_found_and_the_arithmetic_adds_up(tmp_path: Path) -> None:
    result = tmp_path / "stages.json"
    module = [sys.executable, "-m", "benchmarks.preprocess.stages_run", str(result)]
    done = measured_process.run_measured(
        [*module, *our_command(a_job(tmp_path))[2:]],
        cwd=PROJECT_DIR,
        environment=dict(os.environ),
        log_path=tmp_path / "log.txt",
    )
    assert done.exit_code == 0, (tmp_path / "log.txt").read_text()
    found = json.loads(result.read_text())
    assert set(found) == {*STAGES, IMPORTS, REST}
    assert all(seconds > 0 for seconds in found.values())
    figures = arithmetic([found], 10**6)
    assert figures["total"] == pytest.approx(sum(found.values()))
    assert figures["divided"] * 1e-3 + figures["start"] + found["hash the input"] == pytest.approx(figures["total"])
    assert len(stage_rows([found], 10**6)) == len(found) + 1


def test_the_version_before_is_a_folder_of_its_files(tmp_path: Path) -> None:
    folder = checkout("HEAD", tmp_path)
    assert (folder / "preprocess.py").is_file()
    with pytest.raises(UserError, match="--before no-such-commit"):
        checkout("no-such-commit", tmp_path)


def test_arms_are_chosen_by_their_names() -> None:
    found = arms(None, None)
    assert chosen(found, None) == found
    assert [arm.name for arm in chosen(found, ["naive"])] == [OURS, "naive"]
    with pytest.raises(UserError, match=r"--arms megatron: not an arm of this run; use some of preprocess.py, naive"):
        chosen(found, ["megatron"])
