"""What the processes of a group are given: the same blocks, and each its part of their length."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pretraining.errors import UserError
from pretraining.planning.global_batch import check_sequence_parallel
from pretraining.training.data.batch import BOUNDS, collate_targets
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.model.fields import Heads
from pretraining.training.model.sequence_parallel import collate_parts, join_sequence_group, part_of_batch


def test_parts_put_together_are_the_block_with_its_targets() -> None:
    ids = torch.arange(24).view(2, 12)
    items = [{"input_ids": row, "labels": row, "sources": row // 5} for row in ids]
    parts = [collate_parts(items, rank=rank, size=3) for rank in range(3)]
    whole = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    assert torch.equal(whole["input_ids"], ids)
    assert torch.equal(whole["position_ids"], torch.arange(12).expand(2, 12))
    assert torch.equal(whole["labels"][:, :-1], ids[:, 1:])
    assert (whole["labels"][:, -1] == IGNORED_LABEL).all()
    assert torch.equal(whole["sources"][:, :-1], ids[:, 1:] // 5)


def test_positions_that_are_there_stay() -> None:
    ids = torch.arange(8)[None]
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])
    batch = collate_targets([{"input_ids": ids[0], "labels": ids[0], "position_ids": positions[0]}])
    part = part_of_batch(batch, rank=1, size=2)
    assert part["position_ids"].tolist() == [[1, 0, 1, 2]]
    assert part[BOUNDS].tolist() == [0, 3, 5, 8], "of the complete block, in which attention is computed"


def test_a_size_must_divide_processes_heads_and_blocks() -> None:
    heads = Heads(num_attention_heads=8, num_key_value_heads=4)
    check_sequence_parallel(4, heads, block_length=64, num_processes=8)
    with pytest.raises(UserError) as refused:
        check_sequence_parallel(8, heads, block_length=60, num_processes=8)
    assert "4 heads of keys" in str(refused.value)
    assert "60 tokens" in str(refused.value)
    assert "processes" not in str(refused.value)


def test_a_group_waits_as_long_as_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """For rank 0 writing a checkpoint; torch would give a group of NCCL 10 minutes, whatever the run has."""
    asked = {}
    monkeypatch.setattr(dist, "new_subgroups", lambda _, **options: (asked.update(options), None))
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    assert join_sequence_group(2, timeout_seconds=7200).rank == 1
    assert asked == {"timeout": timedelta(seconds=7200)}
