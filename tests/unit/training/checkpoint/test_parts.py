"""Parts of a checkpoint: what is copied, and what DeepSpeed's engine hands over."""

from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pretraining.training.checkpoint.parts import (
    CheckpointPart,
    DeferredCheckpointEngine,
    as_saved,
    copy_through,
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


class CopyEvent:
    """In place of CUDA's: a buffer must be emptied, after its copy has ended, before it is filled again."""

    waiting: ClassVar[list["CopyEvent"]] = []

    def record(self) -> None:
        assert len(CopyEvent.waiting) < 2, "a buffer is filled before it was emptied"
        CopyEvent.waiting.append(self)

    def synchronize(self) -> None:
        assert CopyEvent.waiting.pop(0) is self


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (16,), (7, 5)])
def test_a_copy_through_two_buffers_is_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randint(100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    buffers = [torch.empty(24, dtype=torch.uint8) for _ in range(2)]  # bytes
    copied = copy_through(values, buffers, CopyEvent)
    assert torch.equal(copied, values)
    assert copied.dtype == dtype
    assert copied.data_ptr() != values.data_ptr() or not values.numel()
    assert CopyEvent.waiting == []


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
