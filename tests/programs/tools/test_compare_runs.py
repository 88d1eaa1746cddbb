"""tools.compare_runs as a user starts it: what differs is told, and nothing else."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Done, assert_one_error, run, run_fine
from tests.programs.launching import train
from tools.compare_runs import parts_of

COMPARE = [sys.executable, "-m", "tools.compare_runs"]
PARTS = ["arguments", "data", "model", "deepspeed", "versions", "machine", "figures", "weights"]


@pytest.fixture(scope="module")
def runs(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compared")
    for name, seed in (("a", 1), ("again", 1), ("other", 2)):
        flags = ["--max_steps", 3, "--seed", seed, "--eval_strategy", "no", "--save_strategy", "no"]
        train("1 rank", sample_store, folder / name, *flags)
    return {name: folder / name for name in ("a", "again", "other")}


def told(done: Done) -> dict[str, list[str]]:
    """What stands behind the name of each part."""
    found: dict[str, list[str]] = {}
    part = ""
    for line in done.stdout.splitlines():
        part = line[:10].strip() or part
        found.setdefault(part, []).append(line[11:])
    return found


@pytest.mark.launch
def test_the_same_run_twice_is_equal_to_the_bit(runs: dict[str, Path]) -> None:
    found = told(run_fine(*COMPARE, runs["a"], runs["again"]))
    assert found == {part: ["equal"] for part in PARTS[:-2]} | {part: ["equal to the bit"] for part in PARTS[-2:]}


@pytest.mark.launch
def test_another_seed_is_told_with_what_it_led_to(runs: dict[str, Path]) -> None:
    done = run(*COMPARE, runs["a"], runs["other"])
    found = told(done)
    assert done.returncode == 1
    assert found["arguments"] == ["seed: 1 and 2"]
    assert found["figures"][0].startswith("step 1: loss ")
    assert ", relative difference " in found["figures"][0]
    assert found["weights"] == [f"{runs['other']}/model/model.safetensors has other weights"]
    assert {part for part, lines in found.items() if lines == ["equal"]} == set(PARTS[1:6])


@pytest.mark.launch
def test_data_versions_and_machine_are_looked_at(runs: dict[str, Path], tmp_path: Path) -> None:
    changed = shutil.copytree(runs["a"], tmp_path / "changed")
    record = json.loads((changed / "run.json").read_text())
    record["identity"]["data"][0]["manifest_sha256"] = "0"
    record["packages"]["torch"] = "1.0"
    record["hardware"]["gpu"] = "NVIDIA H200"
    (changed / "run.json").write_text(json.dumps(record))
    records = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["step"] != 3 or "loss" not in record]
    (changed / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    shutil.rmtree(changed / "model")
    done = run(*COMPARE, runs["a"], changed)
    found = told(done)
    assert done.returncode == 1
    assert found["data"][0].startswith("data.0.manifest_sha256: ")
    assert found["versions"][0].startswith("packages.torch: ")
    assert found["machine"] == ["gpu: None and NVIDIA H200"]
    assert found["figures"] == [f"step 3 is 0 times in {changed}/metrics.jsonl"]
    assert found["weights"] == [f"{changed}/model has the files none, not model.safetensors"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--run, --other: pass two run folders"]),
        (["a"], ["--run, --other: pass two run folders"]),
        (["nowhere", "tests"], ["nowhere/run.json: cannot be read (No such file or directory); pass a run folder"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], parts: list[str]) -> None:
    done = run(*COMPARE, *words)
    assert done.returncode == 2
    assert_one_error(done, *parts)


def test_how_a_launcher_counts_is_no_difference() -> None:
    first, second = (parts_of({"arguments": {"local_rank": rank, "seed": 7}}) for rank in (0, -1))
    assert first == second
    assert first["arguments"] == {"seed": 7}


def test_it_needs_no_torch() -> None:
    modules = "tools.compare_runs, pretraining.runs.compare, pretraining.runs.run_record"
    run_fine(sys.executable, "-c", f"import sys; sys.modules['torch'] = None; import {modules}")
