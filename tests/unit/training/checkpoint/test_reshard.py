"""What only as many processes can go on from as saved it; random states of others."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretraining.errors import UserError
from pretraining.runs.export.zero_shards import ZeroShards
from pretraining.training.checkpoint.reshard import (
    check_can_reshard,
    check_divisible,
    describe_checkpoint,
    reseed_for_world_size,
)

WEIGHTS = torch.zeros(8)
ADAMW = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(8), "exp_avg_sq": torch.zeros(8)}


def make_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """One of two processes, as far as the checks before a run look into it."""
    shards = folder / "checkpoint-3/global_step3"
    shards.mkdir(parents=True)
    optimizer = {"state": {0: state}, "param_groups": [{"params": [0], "lr": 0.1}]}
    shard = {"optimizer_state_dict": {"fp32_flat_groups": [WEIGHTS], "optimizer_state_dict": optimizer}}
    for process in range(2):
        torch.save(shard, shards / f"zero_pp_rank_{process}_mp_rank_00_optim_states.pt")
    torch.save({"param_shapes": [{"a": torch.Size([16])}]}, shards / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return shards.parent


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"step": 3, "state1": torch.zeros(8, dtype=torch.uint8), "absmax1": torch.zeros(1)}, "state1"),
        ({"step": 3, "state1": torch.zeros(8), "absmax1": torch.zeros(2)}, "absmax1"),
        ({"step": 3, "nested": {"state1": torch.zeros(8, dtype=torch.uint8)}}, "nested"),
    ],
)
def test_codes_of_whole_blocks_are_not_divided(state: dict[str, Any], named: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, state)
    config = {"zero_optimization": {"stage": 3}}
    check_can_reshard(checkpoint, config, num_processes=2)
    with pytest.raises(UserError) as found:
        check_can_reshard(checkpoint, config, num_processes=3)
    assert str(found.value) == (
        f"--resume {checkpoint}: was saved by 2 processes, and its optimizer state ({named}) cannot be divided among "
        "others; start with --num_gpus=2"
    )
    remedy = f"in another way; use precision, --optim, stage and sub_group_size of {checkpoint}/run.json"
    with pytest.raises(UserError, match=f"cannot be divided {re.escape(remedy)}"):
        check_divisible(ZeroShards(checkpoint), swaps=False, num_processes=2)
    for stage in (1, 2):
        with pytest.raises(UserError, match=f"cannot be divided {re.escape(remedy)}"):
            check_can_reshard(checkpoint, {"zero_optimization": {"stage": stage}}, num_processes=2)


def offload_to(device: str) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": device}}}


def leave_offloaded_tensors(checkpoint: Path) -> None:
    (checkpoint / "global_step3/offloaded_tensors").mkdir()


@pytest.mark.parametrize(
    ("device", "change", "fine"),
    [
        ("cpu", lambda _: None, True),
        ("nvme", lambda _: None, False),
        ("cpu", leave_offloaded_tensors, False),
    ],
)
def test_what_is_on_nvme_is_not_divided(
    device: str, change: Callable[[Path], None], fine: bool, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path, ADAMW)
    change(checkpoint)
    if fine:
        check_can_reshard(checkpoint, offload_to(device), num_processes=1)
    else:
        with pytest.raises(UserError, match=r"optimizer state \(on nvme\) cannot be divided .* --num_gpus=2"):
            check_can_reshard(checkpoint, offload_to(device), num_processes=1)
    check_can_reshard(checkpoint, offload_to(device), num_processes=2)


def test_the_start_says_whose_checkpoint_it_is(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, ADAMW)
    assert describe_checkpoint(checkpoint, num_processes=2, stage=3) == str(checkpoint)
    assert describe_checkpoint(checkpoint, num_processes=1, stage=3) == f"{checkpoint} (saved by 2 processes, now 1)"
    changes = "saved by 2 processes, now 1; saved with ZeRO-3, now ZeRO-2"
    assert describe_checkpoint(checkpoint, num_processes=1, stage=2) == f"{checkpoint} ({changes})"
    engine = checkpoint / "global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt"
    engine.rename(engine.with_name("mp_rank_00_model_states.pt"))
    assert describe_checkpoint(checkpoint, num_processes=2, stage=1) == str(checkpoint)
    now = f"{checkpoint} (saved with ZeRO-1 or ZeRO-2, now ZeRO-3)"
    assert describe_checkpoint(checkpoint, num_processes=2, stage=3) == now


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_random_states_differ_by_process_step_and_seed_alone(tmp_path: Path) -> None:
    draws = {}
    for step in (3, 4):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for seed in (1, 2):
            for process in (0, 1):
                for _ in range(2):
                    reseed_for_world_size(tmp_path / str(step), seed=seed, process=process)
                    found = drawn()
                    assert draws.setdefault((step, seed, process), found) == found, "it is another one the second time"
    for numbers in zip(*draws.values(), strict=True):
        assert len(set(numbers)) == 8
