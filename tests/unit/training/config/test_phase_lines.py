"""The table of phases: steps, tokens, learning rates, blocks and epochs add up to the run."""

from dataclasses import replace
from pathlib import Path

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.data.phases import load_data
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.config.phase_lines import PhasePlan
from pretraining.training.data.phases import chain_orders, plan_orders
from pretraining.training.optim.schedule import make_schedule

BATCH = GlobalBatch(
    num_processes=2, micro_batch_blocks=2, gradient_accumulation_steps=2, block_length=64, sequence_parallel_size=1
)


def test_lines_of_two_phases(sample_store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""\
max_steps: 100
warmup_steps: 2
phases:
  - {{name: pretrain, dataset: news={sample_store}, share: 0.9}}
  - {{name: anneal, dataset: news={sample_store}, share: 0.1, lr_scheduler_type: linear}}
""")
    arguments = parse_pretrain_arguments("", ["--recipe", str(recipe)])
    mixture, phases = load_data(arguments.data), arguments.data.phases
    (size,) = mixture.num_blocks("train")
    schedule = make_schedule(arguments, num_steps=100)
    lines = list(PhasePlan(phases, [90, 100], schedule, BATCH, mixture).lines())
    assert lines == [
        "phase pretrain: steps 1 to 90, 46,080 tokens, learning rate 1.50e-04 to 3.00e-05 (cosine)",
        f"phase pretrain, news: 720 blocks, epochs 0.00 to {720 / size:.2f}",
        "phase anneal: steps 91 to 100, 5,120 tokens, learning rate 2.70e-05 to 0.00e+00 (linear)",
        f"phase anneal, news: 80 blocks, epochs {720 / size:.2f} to {800 / size:.2f}",
    ]
    order = chain_orders(plan_orders(mixture, ["hash"], seed=0), [0, 720], start=400, read={"hash": 400}, saved=None)
    same = PhasePlan(phases, [90, 100], schedule, BATCH, mixture, ["hash"], order)
    assert list(same.lines()) == lines, "a resumed run reads what the plan has"
    changed = replace(order, read={"hash": 100})
    later = list(PhasePlan(phases, [90, 100], schedule, BATCH, mixture, ["hash"], changed).lines())
    assert later[1] == f"phase pretrain, news: 320 blocks left, epochs {100 / size:.2f} to {420 / size:.2f}"
    assert later[3] == f"phase anneal, news: 80 blocks, epochs {420 / size:.2f} to {500 / size:.2f}"
    without_blocks = PhasePlan(phases, [90, 100], schedule, BATCH, None)
    assert list(without_blocks.lines()) == lines[::2]


def test_phases_without_blocks_here_need_no_mixture() -> None:
    phases = [PhaseArguments("only", ["nowhere"])]
    schedule = make_schedule(parse_pretrain_arguments("", ["--max_steps", "10"]), num_steps=10)
    (line,) = PhasePlan(phases, [10], schedule, BATCH, None).lines()
    assert line.startswith("phase only: steps 1 to 10, 5,120 tokens, learning rate 1.50e-07 to 1.50e-06 (cosine)")
