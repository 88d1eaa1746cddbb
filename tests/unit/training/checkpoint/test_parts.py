"""Parts of a checkpoint: what is copied, and what DeepSpeed's engine hands over."""

from enum import Enum
from pathlib import Path
from typing import Any

import torch

from pretraining.training.checkpoint.parts import (
    CheckpointPart,
    DeferredCheckpointEngine,
    as_saved,
    host_copy,
    num_tensor_bytes,
)


class Stage(Enum):
    WEIGHTS = 3


def state() -> dict[str, Any]:
    weights = torch.arange(4.0)
    weights.ds_id = 7  # type: ignore[attr-defined]
    return {"groups": [weights, (torch.zeros(2, dtype=torch.bfloat16),)], "stage": Stage.WEIGHTS, "step": 3}


def test_a_copy_stays_as_it_is_and_what_is_saved_takes_no_memory() -> None:
    ours = state()
    copied, saved = host_copy(ours), as_saved(ours)
    assert num_tensor_bytes(ours) == num_tensor_bytes(copied) == 4 * 4 + 2 * 2
    ours["groups"][0].zero_()
    assert copied["groups"][0].tolist() == [0, 1, 2, 3]
    assert saved["groups"][0].data_ptr() == ours["groups"][0].data_ptr()
    assert not hasattr(saved["groups"][0], "ds_id")
    assert (copied["stage"], saved["stage"], saved["step"]) == (Stage.WEIGHTS, 3, 3)
    assert isinstance(saved["groups"][1], tuple)


def test_nothing_is_written_before_a_part_is(tmp_path: Path) -> None:
    parts: list[CheckpointPart] = []
    engine = DeferredCheckpointEngine(parts.append)
    path = tmp_path / "global_step3/shard.pt"
    engine.makedirs(str(path.parent))
    engine.save({"weights": torch.ones(2)}, str(path))
    assert list(tmp_path.iterdir()) == []
    (part,) = parts
    assert part.write(part.content) == [path]
    assert torch.load(path, weights_only=True)["weights"].tolist() == [1, 1]
