from typing import Any

import pytest

from pretraining.cli.arguments.run import DurabilityArguments, ObservabilityArguments, PlanArguments
from pretraining.errors import UserError


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("512GB", 512 * 10**9), ("1.5 TiB", 3 * 2**39), ("64gib", 2**36), ("2000MB", 2 * 10**9)]
)
def test_host_memory_is_read_in_its_unit(text: str, num_bytes: int) -> None:
    assert PlanArguments(dry_run=True, host_memory=text).host_bytes == num_bytes


@pytest.mark.parametrize(
    ("kind", "values", "problems"),
    [
        (DurabilityArguments, {"allow_changed": ["data", "x"]}, ["--allow_changed x: is not one of data, "]),
        (
            ObservabilityArguments,
            {"sample_prompts": ["a", ""], "license": "My Own"},
            ["--sample_prompts: one of them is empty", "--license My Own: is not a license of the Hub"],
        ),
        (PlanArguments, {"host_memory": "much", "dry_run": True}, ["--host_memory much: is not a size"]),
        (PlanArguments, {"dry_run": True, "profile_plan": True}, ["--dry_run --profile_plan: exclude each other"]),
        (PlanArguments, {"gpu_type": "h200"}, ["--gpu_type: describes another machine, for --dry_run"]),
        (
            PlanArguments,
            {"num_gpus": 8, "num_nodes": 2},
            [
                "--num_gpus: describes another machine, for --dry_run; remove it",
                "--num_nodes: describes another machine, for --dry_run; the launcher takes it, e.g. deepspeed",
            ],
        ),
    ],
)
def test_mistakes_that_need_no_file_are_reported_at_once(
    kind: Any, values: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        kind(**values)
    assert [found.startswith(expected) for found, expected in zip(caught.value.problems, problems, strict=True)] == [
        True
    ] * len(problems)
