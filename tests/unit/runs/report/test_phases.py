"""Each phase is shown with its own data sets and learning rates."""

from typing import Any

from pretraining.runs.report.phases import data_sets, phase_table

FIRST: dict[str, Any] = {"shape": "constant", "peak": 3e-3, "minimum": 3e-4, "warmup_steps": 2, "num_steps": 21}
LAST: dict[str, Any] = {"shape": "linear", "peak": 3e-3, "minimum": 0, "warmup_steps": 0, "num_steps": 30}


def test_each_phase_has_its_data_sets_and_its_schedule() -> None:
    phases: list[dict[str, Any]] = [
        {"name": "stable", "share": 0.5, "dataset": ["a=bl_a"], "lr_scheduler_type": "constant"},
        {"name": "mixed", "share": 0.2, "dataset": ["a=bl_a:0.5", "b=bl_b:0.5"], "learning_rate": None},
        {"name": "decay", "share": 0.3, "dataset": ["a=bl_a:0.3", "b=bl_b:0.7"], "lr_scheduler_type": "linear"},
    ]
    record = {"arguments": {"phases": phases}, "schedule": {**FIRST, "later": [{**LAST, "first_step": 21}]}}
    constant = "constant 3.00e-03; 2 steps of warmup"
    assert phase_table(record) == {
        "stable": f"0.5 of the tokens; a=bl_a; {constant}",
        "mixed": f"0.2 of the tokens; a=bl_a:0.5 b=bl_b:0.5; {constant}",
        "decay": "0.3 of the tokens; a=bl_a:0.3 b=bl_b:0.7; linear 3.00e-03 to 0.00e+00",
    }
    assert phase_table({"schedule": FIRST}) == phase_table({}) == {}


def test_data_sets_of_a_run_without_phases() -> None:
    assert data_sets({"dataset": "blocks"}) == "blocks"
    assert data_sets({"dataset": ["a", "b"]}) == "a b"
