"""--profile_plan: which run is measured, and the table of planned and measured values."""

from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.data.mixture import load_mixture
from pretraining.planning.model_states import model_states
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.plan import make_plan
from pretraining.training.dry_run.profile import profile_arguments, profile_table
from tests.conftest import PROJECT_DIR, TINY_RUN


def arguments(store: Path, run_dir: Path, *flags: object) -> PretrainArguments:
    words = [*TINY_RUN, "--deepspeed", PROJECT_DIR / "ds_config.json", "--dataset", store, "--output_dir", run_dir]
    return parse_pretrain_arguments("", [str(word) for word in [*words, *flags]])


def test_a_run_is_shortened_and_writes_elsewhere(sample_store: Path, tmp_path: Path) -> None:
    flags = arguments(sample_store, tmp_path / "run", "--global_batch_tokens", 64 * 20, "--max_hours", 3)
    mixture = load_mixture([str(sample_store)], revision=None)
    assert profile_arguments(flags, mixture) is flags, "only with --profile_plan"
    flags = arguments(sample_store, tmp_path / "run", "--global_batch_tokens", 64 * 20, "--profile_plan")
    short = profile_arguments(flags, mixture)
    assert (short.trainer["max_steps"], short.trainer["gradient_accumulation_steps"]) == (5, 8)
    assert short.data.global_batch_tokens is None
    assert Path(short.trainer["output_dir"]).parent == tmp_path
    assert short.trainer["output_dir"] != flags.trainer["output_dir"]
    flags = arguments(sample_store, tmp_path / "run", "--global_batch_tokens", 128, "--profile_plan", "--max_steps", 2)
    short = profile_arguments(flags, mixture)
    assert (short.trainer["max_steps"], short.trainer["gradient_accumulation_steps"]) == (2, 2)


def test_time_energy_and_price_at_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--dry_run", "--gpu_type", "h200", "--num_gpus", "8", "--max_tokens", str(1024 * 4096 * 100)]
    flags = parse_pretrain_arguments("", [*words, "--assumed_hfu", "0.5", "--price_per_gpu_hour", "3"])
    run = make_plan(flags, planned_machine(flags.plan), None)
    costs = run.costs
    assert costs is not None
    assert costs.price is not None
    rates = [1.0, 1.0, 3 / 8 * costs.tokens_per_second_per_gpu, 3 / 4 * costs.tokens_per_second_per_gpu]
    records = [
        {"step": step, "tokens": step * 2**15, "tokens_per_second_per_gpu": rate, "peak_memory_bytes": 71e9}
        for step, rate in enumerate(rates, start=1)
    ]
    table = profile_table(run, dict.fromkeys(vars(model_states(run.layout)), 0), records)
    assert "4 steps of 32,768 tokens" in table
    rows = {line[2:32].strip(): line[32:].split() for line in table.splitlines() if line.startswith("  ")}
    assert rows["allocated at most per GPU, GB"][1] == "71.00"
    assert rows["MFU"] == ["50.0%", "25.0%"], "the harmonic mean of the steps after the first two is half of the plan"
    assert rows["price"] == [f"{costs.price:,.2f}", f"{2 * costs.price:,.2f}"]
    energy = [f"{times * costs.kilowatt_hours:,.1f}" for times in (1, 2)]
    assert rows["energy of the GPUs, at most"] == [energy[0], "kWh", energy[1], "kWh"]
