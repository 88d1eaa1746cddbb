"""Recipes that are made for one machine fit it, as their comment says, and train like the published ones."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plans
from benchmarks.plans import HARDWARE_PATH, machine_recipes, planned_line, planned_recipes, recipes_section
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.planning.fit import fits
from pretraining.system.gpus import find_gpu_type
from tests.conftest import PROJECT_DIR

RECIPES = [path.relative_to(PROJECT_DIR).as_posix() for path in machine_recipes()]
# Of a 24 GB card with ECC, which has less than one without.
SMALLEST_24GB = find_gpu_type("a10g").memory_bytes
# What a machine decides, and the training does not.
OF_THE_MACHINE = (
    "per_device_train_batch_size",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "deepspeed",
)


planned_run = cache(plans.planned_run)


@pytest.fixture(scope="module", autouse=True)
def one_plan_of_each() -> Iterator[None]:
    """Several tests read it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plans, "planned_run", planned_run)
        yield


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)  # where the recipes' DeepSpeed configs are


@pytest.mark.parametrize("path", planned_recipes(), ids=lambda path: path.relative_to(PROJECT_DIR).as_posix())
@pytest.mark.guarantee("Each recipe fits the machine that its comment names, with the planned memory that it states.")
def test_it_fits_as_its_comment_says(path: Path) -> None:
    run = planned_run(path)
    assert fits(run.layout, run.machine)
    assert path.read_text().count(planned_line(path) + "\n") == 1, "run python3 -m benchmarks.plans"


def test_every_recipe_for_gpus_has_a_plan() -> None:
    others = {path for path in (PROJECT_DIR / "recipes").rglob("*.yaml") if path not in planned_recipes()}
    assert {path.parent.name for path in others} <= {"quickstart", "recipes"}
    assert [path.name for path in others if path.parent.name == "recipes"] == ["benchmark_quickstart.yaml"]


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_for_the_machine_of_its_name(name: str) -> None:
    run = planned_run(Path(name))
    number, _, memory = Path(name).stem.partition("x")
    assert run.machine.num_processes == int(number)
    assert f"--num_gpus={number} pretrain.py --recipe {name}\n" in Path(name).read_text()
    if memory == "24gb":
        assert fits(run.layout, replace(run.machine, gpu_bytes=SMALLEST_24GB))
    else:
        assert run.machine.gpu_bytes == pytest.approx(int(memory.removesuffix("gb")) * 2**30, rel=0.03)


def training_of(name: str) -> dict[str, Any]:
    """What decides the training, without the machine."""
    arguments = parse_pretrain_arguments("", ["--recipe", name, "--dry_run"])
    trainer = {key: value for key, value in arguments.trainer.items() if key not in OF_THE_MACHINE}
    optimization = replace(arguments.optimization, grad_accum_dtype="auto", optim="adamw")
    return {"trainer": trainer, "data": arguments.data, "optimization": optimization, "model": arguments.model.model}


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_as_the_published_recipe_of_the_model(name: str) -> None:
    published = f"recipes/{Path(name).parent.name}.yaml"
    assert training_of(name) == training_of(published)
    has_its_optimizer = parse_pretrain_arguments("", ["--recipe", name, "--dry_run"]).optimization.optim == "adamw"
    assert has_its_optimizer == (f"{published}, as is the optimizer" in Path(name).read_text())


def test_the_machines_that_people_have_are_covered() -> None:
    names = {(Path(name).parent.name, Path(name).stem) for name in RECIPES}
    for machine in ("1x24gb", "1x80gb", "2x80gb", "4x80gb", "8x80gb", "8x24gb"):
        assert {("llama2_7b", machine), ("llama2_13b", machine)} <= names
    assert {("tinyllama_1b", "1x24gb"), ("tinyllama_1b", "1x80gb"), ("llama2_7b", "1x141gb")} <= names
    assert {("llama2_70b", "8x80gb"), ("llama2_70b", "8x141gb")} <= names


def test_the_table_of_the_documents_is_up_to_date() -> None:
    assert recipes_section() in HARDWARE_PATH.read_text(), "run python3 -m benchmarks.plans"
