"""The benchmark of GPUs: what it would run can be run, and where nothing was measured the page says so."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.measure import command_of, figures_of, format_command, is_wanted
from benchmarks.gpu.page import NOT_MEASURED, page
from benchmarks.gpu.rows import ROWS, SMALL_ROWS, GpuArguments, Row
from benchmarks.gpu.stages import STAGES
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.deepspeed_config import load_ds_config
from tests.conftest import PROJECT_DIR, run_fine


@pytest.mark.parametrize("row", [*ROWS, *SMALL_ROWS], ids=lambda row: row.name)
def test_every_row_is_a_command_that_pretrain_takes(row: Row, tmp_path: Path) -> None:
    command = command_of(row, GpuArguments(), tmp_path, num_gpus=1)
    arguments = parse_pretrain_arguments(
        "", [*command[command.index("pretrain.py") + 1 :], "--dry_run"]
    )  # without optional packages
    config = load_ds_config(arguments.trainer["deepspeed"])
    assert all(config["zero_optimization"][name] == value for name, value in row.zero.items())
    assert all(config[name] == value for name, value in row.sections.items())
    assert (PROJECT_DIR / f"recipes/benchmark_{row.recipe}.yaml").is_file()
    assert str(tmp_path) not in format_command(row, command, str(tmp_path))


def test_names_tell_rows_apart() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_without_a_gpu_nothing_is_run_and_nothing_invented(tmp_path: Path) -> None:
    done = run_fine("python", "-m", "benchmarks.gpu", "--output", tmp_path / "gpu.md", env={"CUDA_VISIBLE_DEVICES": ""})
    assert "no GPU here" in done.output
    assert (tmp_path / "gpu.md").read_text().count(f"| {NOT_MEASURED} |") == len(ROWS)
    assert not (tmp_path / "gpu.json").exists()


def test_what_was_measured_stands_beside_what_was_not_and_what_failed(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 10.5 - step} for step in (1, 2, 3)]
    seconds = {"data_seconds": 0.1, "optimizer_seconds": 1.0, "total_seconds": 20.0}
    speed = {"overall_tokens_per_second_per_gpu": 12345.6, "mfu": 0.575, "peak_memory_bytes": 130.4e9}
    records.append({"step": 3, "event": "summary", **speed, **seconds})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    measured = figures_of(tmp_path, "", 0) | {"command": "deepspeed pretrain.py"}
    failed = figures_of(tmp_path / "none", "step 1\nerror: --model: does not fit\n[launcher] ended\n", 1)
    found = {"rows": {ROWS[0].name: measured, ROWS[1].name: failed | {"command": "deepspeed pretrain.py"}}}
    text = page(ROWS[:3], found, is_small=False)
    assert "| 12,346 | 57.5 % |  | 130.4 | 9.5000 | 7.5000 |" in text
    assert f"- {ROWS[1].name}: `error: --model: does not fit`" in text
    assert text.count(f"| {NOT_MEASURED} |") == 1


def test_a_row_that_is_done_is_not_run_again() -> None:
    row = SMALL_ROWS[0]
    assert is_wanted(row, {}, GpuArguments(small=True), num_gpus=0)
    assert not is_wanted(row, {row.name: {}}, GpuArguments(small=True), num_gpus=0)
    assert not is_wanted(Row("two", num_gpus=2), {}, GpuArguments(), num_gpus=1)


def test_a_row_for_more_host_memory_is_left_out() -> None:
    row = Row("offload", host_gigabytes=10**6)
    assert not is_wanted(row, {}, GpuArguments(), num_gpus=8)
    assert all(row.host_gigabytes >= 100 for row in ROWS if "offload" in row.ds_config)


def test_a_row_for_several_gpus_is_left_out_on_one() -> None:
    (row,) = [row for row in ROWS if "overlap_comm" in row.zero]
    assert not is_wanted(row, {}, GpuArguments(), num_gpus=1)
    assert is_wanted(row, {}, GpuArguments(), num_gpus=2)


@pytest.mark.launch
def test_the_slot_runs_from_start_to_page_and_resumes(tmp_path: Path) -> None:
    """With the quickstart's model, which takes the stages of a GPU on any machine."""
    output = tmp_path / "results/slot.md"
    words = ["bash", PROJECT_DIR / "benchmarks/gpu/slot.sh", "--small", "--minutes", 60, "--output", output]
    env = {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = run_fine(*words, cwd=tmp_path, env=env)
    found = json.loads(output.with_suffix(".json").read_text())
    assert list(found["stages"]) == [stage.name for stage in STAGES]
    assert [figures for figures in (*found["stages"].values(), *found["rows"].values()) if "failed" in figures] == []
    assert list(found["rows"]) == [SMALL_ROWS[0].name]
    assert output.with_name("slot-trace.json.gz").stat().st_size > 1000
    text = output.read_text()
    for part in (STAGES[0].name[1:], "Text: `The council", "Self CPU", "| decoder as it is |", "skipped"):
        assert part in text
    found["rows"].clear()
    output.with_suffix(".json").write_text(json.dumps(found))
    done = run_fine(*words, cwd=tmp_path, env=env)
    started = [line for line in done.stderr.splitlines() if line.endswith(" ...")]
    assert started == [f"{SMALL_ROWS[0].name} ..."], "only what is missing"
