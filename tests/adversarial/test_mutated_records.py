"""Damaged and forged records of a run: each reader works with what is left, or ends with one line."""

import itertools
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from pretraining.errors import UserError
from pretraining.runs.claim import checkpoint_to_resume
from pretraining.runs.compare import difference_of_metrics
from pretraining.runs.export.zero_shards import config_of_checkpoint
from pretraining.runs.history import read_history
from pretraining.runs.record_file import read_run_record
from pretraining.runs.report.report import write_report
from pretraining.runs.run_record import RunIdentity, check_same_run, warn_of_versions
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.runs.tracking.reporters import last_reported_step
from pretraining.system.files import xxh3_of
from pretraining.training.config.resume import find_resume_point
from tests.adversarial.drivers.mutations import mutations, num_mutations
from tests.fakes.drawn_run import event, run_records
from tests.programs.launching import train
from tools.compare_runs import compared_records

pytestmark = pytest.mark.launch

SUMMARY = {"num_steps": 3, "total_seconds": 9.5, "energy_joules": 1e6, "peak_memory_bytes": 1e9}
SUMMARY |= {f"{part}_seconds": 1.0 for part in ("data", "forward_backward", "optimizer", "save", "evaluation", "other")}
# complete.json and trainer_state.json are read in a millisecond; a report takes 40 of them.
NUM_MUTATIONS = {"run.json": 900, "metrics.jsonl": 900, "trainer_state.json": 2000, "complete.json": 3000}
NUM_MUTATIONS["config.json"] = 1000


@pytest.fixture(scope="module")
def run_dir(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real run has left, whose log has a record of every other kind besides."""
    run_dir = tmp_path_factory.mktemp("mutated") / "run"
    train("1 rank", sample_store, run_dir, "--max_steps", 2, "--save_steps", 1, "--export", "false")
    drawn = [record for record in run_records(160) if record["step"] in (0, 77, 100, 150)]
    with (run_dir / "metrics.jsonl").open("a") as log:
        for record in (*drawn, event(160, "summary", **SUMMARY)):
            log.write(json.dumps(record) + "\n")
    return run_dir


@pytest.fixture(autouse=True)
def _fast_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what takes time and reads no record: waits for the disk, the page's library, pictures of charts."""
    monkeypatch.setattr("pretraining.system.files.fsync", lambda _: None)
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda _: "")
    monkeypatch.setattr(vl_convert, "vegalite_to_png", lambda spec, **_: json.dumps(spec, allow_nan=False).encode())
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check_same(run_dir: Path) -> None:
    """As a start with the same flags, and with others."""
    identity = RunIdentity(
        data=[{"manifest_sha256": "0", "blocks_per_1000": 1000}],
        tokenizer_sha256="0",
        model_config={},
        global_batch_tokens=512,
        seed=1,
        order_seed=1,
        document_masking=False,
        ignore_first_token=False,
        precision="fp32",
        optimizer="adamw",
        optimizer_settings={},
    )
    check_same_run(run_dir, identity, allowed=[])


def forget(run_dir: Path) -> None:
    """As a resume does, which must keep what it cannot read."""
    copy = run_dir.with_name("forgetful")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    content = (run_dir / "metrics.jsonl").read_bytes()
    (copy / "metrics.jsonl").write_bytes(content)
    MetricsLog(copy).forget_after(1, [])
    lines = {zlib.crc32(line) for line in content.splitlines() if not line.isspace()}
    sound = [json.loads(line) for line in (copy / "metrics.jsonl").read_bytes().splitlines()]
    assert all(isinstance(record["step"], int) for record in sound)
    damaged = copy / "metrics.jsonl.damaged"
    assert len(lines) == 0 or damaged.exists() or all(json.loads(line) for line in content.splitlines() if line.strip())
    assert not damaged.exists() or damaged.read_bytes() == content


def ends_well(read: Callable[[], Any], what: str) -> bool:
    """Whether it worked; when not, it ended in one line for each problem."""
    problems: tuple[str, ...] = ()
    try:
        read()
    except UserError as error:
        problems = error.problems or ("",)
    assert all(problem and "\n" not in problem for problem in problems), what
    return not problems


def config(run_dir: Path) -> None:
    """As exports and generate.py read it."""
    config_of_checkpoint(run_dir / "checkpoint-2")


READERS: dict[str, list[Callable[[Path], Any]]] = {
    "run.json": [write_report, check_same, warn_of_versions, config, lambda run: compared_records(run, run)],
    "config.json": [config],
    "metrics.jsonl": [
        write_report,
        read_history,
        forget,
        last_reported_step,
        lambda run: difference_of_metrics(run, run),
    ],
    "trainer_state.json": [lambda run: find_resume_point(run, str(run / "checkpoint-2"))],
    "complete.json": [lambda run: checkpoint_to_resume(run, "auto"), lambda run: find_resume_point(run, "auto")],
}


def without_copies(run_dir: Path) -> None:
    """So that run.json is not read from a checkpoint in its place."""
    for copy in run_dir.glob("checkpoint-*/run.json"):
        copy.unlink()


def forge_checksum(path: Path) -> None:
    """Have complete.json call the file whole, as a forger would, or a program that writes rubbish."""
    complete = path.with_name("complete.json")
    content = json.loads(complete.read_text())
    record = next(file for file in content["files"] if file["path"] == path.name)
    record |= {"num_bytes": path.stat().st_size, "xxh3_128": xxh3_of(path)}
    complete.write_text(json.dumps(content))


@pytest.mark.parametrize("name", NUM_MUTATIONS)
def test_mutated_records_end_in_one_line_or_are_read(name: str, run_dir: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    if name == "run.json":
        without_copies(run_dir)
    path = run_dir / name if name in ("run.json", "metrics.jsonl") else run_dir / "checkpoint-2" / name
    content, num_read, total = path.read_bytes(), 0, num_mutations(NUM_MUTATIONS[name])
    for number, mutated in enumerate(itertools.islice(mutations(content, 7), total)):
        path.write_bytes(mutated)
        if name == "trainer_state.json":
            forge_checksum(path)
        for read in READERS[name]:
            num_read += ends_well(partial(read, run_dir), f"mutation {number} of {name}")
    path.write_bytes(content)
    if name == "trainer_state.json":
        forge_checksum(path)
    assert num_read > total / 10, "not all is refused"
    for read in READERS[name]:
        if read is not check_same:
            assert ends_well(partial(read, run_dir), name), "what is as it was is read"


def test_a_damaged_run_json_is_read_from_a_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    for mutated in itertools.islice(mutations((run_dir / "run.json").read_bytes(), 3), 100):
        (run_dir / "run.json").write_bytes(mutated)
        assert isinstance(read_run_record(run_dir), dict), "the changed one, or its copy"
