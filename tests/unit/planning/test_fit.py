"""Gradient type, verdict, suggestions and table of a plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.arguments.run import PlanArguments
from pretraining.errors import UserError
from pretraining.planning.evaluation import plan_evaluation
from pretraining.planning.fit import GradientType, choose_gradient_type, fits
from pretraining.planning.footprint import footprint
from pretraining.planning.global_batch import GlobalBatch, divisors
from pretraining.planning.layout import CONTEXT_BYTES, MachineSpec
from pretraining.planning.suggestions import ENOUGH_TOKENS, check_fits, find_suggestions, largest_micro_batch
from pretraining.planning.table import PlannedRun, plan_table
from pretraining.system.gpus import find_gpu_type
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.plan import make_plan
from tests.conftest import PROJECT_DIR
from tests.unit.planning.layouts import layout_of


def machine(kind: str, number: int = 1, *, host: float | None = None, memory: float | None = None) -> MachineSpec:
    spec = find_gpu_type(kind)
    room = spec.memory_bytes if memory is None else int(memory)
    host_bytes = None if host is None else int(host)
    return MachineSpec(f"{number} x {kind}", number, min(8, number), room, spec, host_bytes)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def batch(number: int = 1, *, micro: int = 1) -> GlobalBatch:
    return GlobalBatch(4096, micro, 1024 // micro // number, number)


def planned(words: list[str]) -> PlannedRun:
    arguments = parse_pretrain_arguments("", words)
    return make_plan(arguments, planned_machine(arguments.plan), None)


def chosen(asked: str, *, precision: str = "bf16", gigabytes: float, num_gpus: int = 1) -> GradientType:
    layout = replace(layout_of("llama2_7b", num_gpus=num_gpus), precision=precision, checkpoint_every=1)
    return choose_gradient_type(asked, layout, machine("h200", num_gpus, memory=gigabytes * 1e9))


def test_gradients_are_added_up_in_fp32_unless_that_does_not_fit() -> None:
    assert chosen("auto", gigabytes=80, num_gpus=8).name == "fp32"
    assert chosen("auto", gigabytes=140).name == "fp32"
    tight = chosen("auto", gigabytes=127)
    assert tight.name == "bf16"
    assert "fp32 would not fit the 121.9 GB of a GPU" in tight.reason
    assert chosen("auto", gigabytes=20).name == "fp32", "neither fits, so the smaller one is no suggestion"
    assert chosen("bf16", gigabytes=20).reason == "as asked for"
    assert chosen("bf16", precision="fp32", gigabytes=20).name == "fp32"
    with pytest.raises(UserError, match="--grad_accum_dtype bf16 --fp16"):
        chosen("bf16", precision="fp16", gigabytes=80)


def test_the_benchmark_of_one_h200_sums_in_bf16_as_its_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """139.8 GiB are what a real H200 reports; 146.5 GB with fp32 sums are less, but leave nothing to the allocator."""
    monkeypatch.chdir(PROJECT_DIR)
    run = planned(["--recipe", "recipes/benchmark_llama2_7b.yaml", "--dry_run", "--gpu_type", "h200"])
    h200 = machine("h200", memory=150_100_000_000)
    full = replace(run.layout, grad_accum_dtype="fp32")
    assert footprint(full).gpu_bytes < h200.gpu_bytes
    assert not fits(full, h200)
    assert choose_gradient_type("auto", full, h200).name == run.layout.grad_accum_dtype == "bf16"
    assert fits(run.layout, h200)
    assert fits(run.layout, run.machine), "as reported, and as the list of GPUs has it"
    assert parse_pretrain_arguments("", ["--recipe", "recipes/benchmark_llama2_7b.yaml", "--dry_run"]).optimization == (
        replace(parse_pretrain_arguments("", ["--dry_run"]).optimization, grad_accum_dtype="bf16")
    )


def test_an_offloaded_optimizer_sums_in_bf16_unless_fp32_is_asked_for() -> None:
    """The sums go to the GPU and back in every micro step."""
    layout, spec = replace(layout_of("llama2_7b"), offload_optimizer=True), machine("h200")
    assert choose_gradient_type("auto", layout, spec).name == "bf16"
    assert choose_gradient_type("fp32", layout, spec).name == "fp32"
    assert choose_gradient_type("auto", replace(layout, precision="fp16"), spec).name == "fp32"
    assert choose_gradient_type("auto", layout, replace(spec, gpu_bytes=None)).name == "fp32", "nothing is copied"


def test_offloading_is_suggested_with_several_blocks_and_its_own_sums() -> None:
    layout, spec = replace(layout_of("llama2_7b"), checkpoint_every=1), machine("h100", host=1e12)
    (first, *_) = find_suggestions(layout, spec, batch())
    assert first.flags == ("--deepspeed ds_config_offload_optimizer.json", "--per_device_train_batch_size 8")
    assert first.layout.grad_accum_dtype == "bf16"
    assert first.layout.num_tokens == ENOUGH_TOKENS
    (first, *_) = find_suggestions(replace(layout, asked_sums="fp32"), spec, batch())
    assert first.layout.grad_accum_dtype == "fp32"
    given = GlobalBatch(4096, 1, 16, 1, follows_tokens=False)
    (first, *_) = find_suggestions(layout, spec, given)
    assert first.flags[1:] == ("--per_device_train_batch_size 8", "--gradient_accumulation_steps 2")
    assert largest_micro_batch(first.layout, spec, replace(given, micro_batch_blocks=8)) is None


def test_sums_that_were_asked_for_stay_in_other_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--dry_run", "--model", "llama2_7b", "--gpu_type", "a100_80gb", "--num_gpus", "4"]
    words += ["--activation_checkpointing", "true", "--grad_accum_dtype", "bf16", "--deepspeed"]
    run = planned([*words, "ds_config_zero1.json"])
    (first, *_) = find_suggestions(run.layout, run.machine, run.batch)
    assert first.flags == ("--deepspeed ds_config_zero2.json",)
    named = planned([*words, "ds_config_zero2.json"]).layout
    assert first.layout.grad_accum_dtype == named.grad_accum_dtype == "bf16"
    assert choose_gradient_type("auto", first.layout, run.machine).name == "fp32", "nothing but the flag decides"


@pytest.mark.parametrize(
    ("kind", "num_gpus", "micro", "first"),
    [
        ("a100_80gb", 8, 16, "--per_device_train_batch_size 2"),
        ("h200", 2, 8, "--per_device_train_batch_size 2"),
        ("a100_80gb", 2, 1, "--activation_checkpointing"),
        ("a100_80gb", 1, 1, "--deepspeed ds_config_offload_optimizer.json --per_device_train_batch_size 2"),
        (
            *("rtx_4090", 1, 1),
            "--activation_checkpointing --deepspeed ds_config_offload_optimizer.json --per_device_train_batch_size 2",
        ),
    ],
)
def test_the_cheapest_change_comes_first_and_each_fits(kind: str, num_gpus: int, micro: int, first: str) -> None:
    layout = replace(layout_of("llama2_7b", num_gpus=num_gpus), micro_batch_blocks=micro)
    spec = machine(kind, num_gpus, host=1e12)
    assert not fits(layout, spec)
    suggestions = find_suggestions(layout, spec, batch(num_gpus, micro=micro))
    assert " ".join(suggestions[0].flags) == first
    assert all(fits(suggestion.layout, suggestion.machine) for suggestion in suggestions)
    assert "--num_gpus=" in " ".join(suggestions[-1].flags)


def test_smaller_micro_batches_are_found_without_counting_down() -> None:
    by_trial = {size: [number for number in range(size, 0, -1) if size % number == 0] for size in range(1, 200)}
    assert {size: divisors(size) for size in by_trial} == by_trial
    assert len(divisors(10**12)) == 13 * 13


def test_a_suggestion_keeps_the_global_batch_where_its_micro_steps_are_given() -> None:
    layout, spec = replace(layout_of("llama2_7b", num_gpus=8), micro_batch_blocks=16), machine("a100_80gb", 8)
    given = GlobalBatch(4096, 16, 2, 8, follows_tokens=False)
    suggestions = find_suggestions(layout, spec, given)
    assert suggestions[0].flags == ("--per_device_train_batch_size 2", "--gradient_accumulation_steps 16")


def test_what_the_host_cannot_hold_is_not_suggested() -> None:
    layout = layout_of("llama2_7b")
    flags = [suggestion.flags for suggestion in find_suggestions(layout, machine("a100_80gb", host=64e9), batch())]
    assert flags
    assert all("offload" not in " ".join(words) for words in flags)


def test_a_run_that_does_not_fit_is_refused_in_one_line_and_forced_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layout, spec = layout_of("llama2_7b"), machine("a100_80gb", host=1e12)
    with pytest.raises(UserError, match="which has 80") as caught:
        check_fits(layout, spec, batch(), model="llama2_7b", force=False)
    assert "on the GPU, which has 80.8 GB for a run; what fits: --deepspeed ds_config_offload_opt" in str(caught.value)
    assert "\n" not in str(caught.value)
    check_fits(layout, spec, batch(), model="llama2_7b", force=True)
    assert "started all the same (--force)" in warned(caplog)[-1]
    check_fits(replace(layout, checkpoint_every=1), machine("h200"), batch(), model="llama2_7b", force=False)


def test_what_is_assumed_refuses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    layout = replace(layout_of("llama2_7b"), checkpoint_every=1)
    needed = footprint(layout)
    assert needed.counted.gpu_bytes < needed.gpu_bytes - CONTEXT_BYTES
    tight = machine("h200", host=1e12, memory=needed.counted.gpu_bytes)  # the margin is among what is assumed
    assert not fits(layout, tight)
    check_fits(layout, tight, batch(), model="llama2_7b", force=False)
    assert "it starts, and may run out of memory; what fits: --" in warned(caplog)[-1]
    smaller = replace(tight, gpu_bytes=needed.counted.gpu_bytes - 1)
    with pytest.raises(UserError, match="on the GPU, which has"):
        check_fits(layout, smaller, batch(), model="llama2_7b", force=False)


def test_the_type_of_the_sums_does_not_depend_on_free_host_memory() -> None:
    layout = replace(layout_of("llama2_7b"), checkpoint_every=1)
    assert choose_gradient_type("auto", layout, machine("h200", host=1)).name == "fp32"


RECIPES_DIR = PROJECT_DIR / "recipes"
RECIPES = sorted([*RECIPES_DIR.glob("*llama[123_]*.yaml"), *RECIPES_DIR.glob("*llama*/*.yaml")])


@pytest.mark.parametrize("recipe", [path.relative_to(RECIPES_DIR).as_posix() for path in RECIPES])
@pytest.mark.parametrize(
    "gpus",  # the second is long: on a small GPU a table has more lines
    ["1 --gpu_type rtx_3090", pytest.param("8 --gpu_type h200 --host_memory 2TB", marks=pytest.mark.long)],
)
def test_the_table_of_every_recipe_fits_80_columns(recipe: str, gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--recipe", f"recipes/{recipe}", "--dry_run", "--num_gpus", *gpus.split(), "--price_per_gpu_hour", "2"]
    run = planned([*words, "--weights", "none"])  # weights of the Hub have the size of the default, llama2_7b
    suggestions = find_suggestions(run.layout, run.machine, run.batch)
    text = plan_table(run, suggestions, problems=["too much"])
    assert all(len(line) <= 79 for line in text.splitlines()), text
    for word in (
        "parameters",
        "tokens per step",
        "optimizer moments",
        "checkpoint",
        "kWh",
        "price",
        "no blocks are here",
    ):
        assert word in " ".join(text.split())  # a line may break within


def test_time_energy_and_price_follow_from_the_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--dry_run", "--gpu_type", "h200", "--num_gpus", "8", "--max_tokens", str(1024 * 4096 * 100)]
    words += ["--assumed_hfu", "0.5", "--price_per_gpu_hour", "3"]
    run = planned(words)
    costs = run.costs
    assert costs is not None
    assert run.num_steps == 100
    # 46.09 GFLOP a token at half of 989.4 TFLOP/s.
    assert costs.tokens_per_second_per_gpu == pytest.approx(0.5 * 989.4e12 / 46.09e9, rel=1e-3)
    assert costs.hours * 3600 * 8 * costs.tokens_per_second_per_gpu == pytest.approx(1024 * 4096 * 100)
    assert costs.kilowatt_hours == pytest.approx(costs.gpu_hours * 0.7)
    assert costs.price == pytest.approx(costs.gpu_hours * 3)
    measured = replace(costs, tokens_per_second_per_gpu=costs.tokens_per_second_per_gpu / 2)
    assert measured.mfu == pytest.approx(0.25)
    assert measured.price == pytest.approx(2 * costs.price)
    recomputed = planned([*words, "--activation_checkpointing", "true"]).costs
    assert recomputed is not None
    assert recomputed.mfu == pytest.approx(0.5 * 3 / 4), "forward is computed twice, and counted once"
    assert planned([*words, "--bf16", "false"]).costs is None, "the peaks are those of bf16"


def test_a_v100_is_planned_without_bf16_and_an_a100_by_its_full_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--recipe", "recipes/tinyllama_1b.yaml", "--dry_run", "--num_gpus", "8", "--gpu_type"]
    plain, half = planned([*words, "v100"]), planned([*words, "v100", "--fp16", "true"])
    assert (plain.layout.precision, plain.costs) == ("fp32", None)
    assert "time: not known, the listed peak is not that of fp32" in plan_table(plain, [], problems=[])
    assert half.costs is not None
    assert half.costs.peak_flops_per_second == 125e12
    assert any("has no bf16: without --fp16 true it trains in fp32; its peak is that of fp16" in n for n in half.notes)
    a100 = planned([*words, "a100"])
    assert (a100.machine.name, a100.layout.precision) == ("8 x a100_80gb", "bf16")
    assert "--gpu_type a100: planned for a100_80gb" in a100.notes


def test_the_table_says_that_tasks_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--dry_run", "--gpu_type", "h200", "--num_gpus", "8", "--max_steps", "100"]
    for flags, note in ([], "estimated by FLOPs"), (["--eval_tasks", "t.jsonl"], "estimated without tasks"):
        run, arguments = planned(words), parse_pretrain_arguments("", ["--deepspeed", "ds_config.json", *flags])
        sizes = {"num_steps": 100, "num_validation_blocks": 10, "num_test_blocks": 10}
        evaluation = plan_evaluation(arguments, run.layout, run.batch, **sizes)
        lines = plan_table(replace(run, evaluation=evaluation), [], problems=[]).splitlines()
        (line,) = [line for line in lines if line.strip().startswith("evaluation, of the time")]
        assert line.endswith(f"%  {note}")
        assert len(line) <= 79


def test_the_table_of_an_offloaded_run_has_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    words = ["--recipe", "recipes/llama2_7b.yaml", "--dry_run", "--gpu_type", "h100", "--host_memory", "256GB"]
    run = planned([*words, "--deepspeed", "ds_config_offload_optimizer.json"])
    rows = [line.split() for line in plan_table(run, [], problems=[]).splitlines()]
    assert ["gradient", "sums", "26.95", "per", "micro", "step,", "both", "ways"] in rows
    assert ["once", "per", "step", "40.43", "gradients,", "weights"] in rows
    assert ["sum", "per", "step", "27,640.98", "1,024", "micro", "steps"] in rows  # 1,024 x 26.95 + 40.43
    assert "use --per_device_train_batch_size 8 (" in " ".join(run.notes)


def test_more_gpus_than_a_machine_has_are_said_to_be_on_several() -> None:
    layout = replace(layout_of("llama2_70b", num_gpus=4), checkpoint_every=1)
    suggestions = find_suggestions(layout, machine("h100", 4, host=512e9), batch(4))
    assert suggestions[0].flags == ("--num_nodes=4", "--num_gpus=8")
    assert suggestions[0].needs.endswith(", on 4 machines")


@pytest.mark.parametrize(
    ("stage", "num_gpus", "first"),
    [
        (1, 8, "--deepspeed ds_config_zero2.json"),  # 44 GB of sums and weights in each GPU, then 20
        (2, 8, "--deepspeed ds_config.json"),
    ],
)
def test_a_stage_that_does_not_fit_names_the_one_that_does(stage: int, num_gpus: int, first: str) -> None:
    layout = replace(layout_of("llama2_7b", num_gpus=num_gpus), checkpoint_every=1)
    layout = replace(layout, zero=replace(layout.zero, stage=stage))
    spec = machine("h100", num_gpus, host=1e12, memory={1: 50e9, 2: 30e9}[stage])
    assert not fits(layout, spec)
    assert find_suggestions(layout, spec, batch(num_gpus))[0].flags == (first,)
    with pytest.raises(UserError, match=f"what fits: {first}"):
        check_fits(layout, spec, batch(num_gpus), model="7b", force=False)


def test_offloading_from_a_lower_stage_is_planned_for_the_stage_of_that_config() -> None:
    layout = replace(layout_of("llama2_7b", num_gpus=2), checkpoint_every=1)
    layout = replace(layout, zero=replace(layout.zero, stage=1))
    found = [one for one in find_suggestions(layout, machine("rtx_4090", 2, host=1e12), batch(2)) if one.flags]
    assert all(one.layout.stage == 3 for one in found if "ds_config_offload" in " ".join(one.flags))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"host_memory": "much", "dry_run": True}, "--host_memory much: is not a size; use e.g. 512GB or 1TB"),
        ({"gpu_type": "h200"}, "--gpu_type: describes another machine, for --dry_run"),
        ({"dry_run": True, "profile_plan": True}, "exclude each other"),
    ],
)
def test_flags_that_say_nothing_are_refused(wishes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlanArguments(**wishes)


def test_sizes_of_host_memory() -> None:
    sizes = {"512GB": 512 * 10**9, "1TB": 10**12, "1.5 tb": 1.5 * 10**12, "2TiB": 2**41}
    assert {text: PlanArguments(dry_run=True, host_memory=text).host_bytes for text in sizes} == sizes
