"""The parts of a checkpoint: collected from DeepSpeed and the Trainer, copied to host memory, written later."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from pretraining.runs.untrusted import load_pickle

BUFFER_BYTES = 256 << 20  # each of two; torch keeps them for the next save


@dataclass(frozen=True)
class CheckpointPart:
    """One or more large files of a checkpoint: the content, and a function that writes it and returns the paths.

    With `is_copy` nothing else changes the content, so that it need not be copied.
    """

    content: Any
    write: Callable[[Any], list[Path]]
    is_copy: bool = False


class DeferredCheckpointEngine(TorchCheckpointEngine):
    """Passes what DeepSpeed would write to `add`, with the path; reads as DeepSpeed does.

    Below stage 3 that would have all weights once more, 2 bytes per parameter in bf16: they are in model.safetensors,
    and a resume makes them from the fp32 weights of the optimizer.
    """

    def __init__(self, add: Callable[[CheckpointPart], None]) -> None:
        super().__init__()
        self._add = add

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: the folder is created once it is known that the disk has space."""

    def save(self, state_dict: Any, path: str) -> None:
        """Add a file of the checkpoint."""
        if "module" in state_dict:
            empty = {name: weight for name, weight in state_dict["module"].items() if weight.numel() == 0}
            state_dict = {**state_dict, "module": empty}

        def write(content: Any) -> list[Path]:
            Path(path).parent.mkdir(exist_ok=True)
            torch.save(as_saved(content), path)
            load_pickle(Path(path), mmap=True)  # fail now if a resume would reject the file
            return [Path(path)]

        self._add(CheckpointPart(state_dict, write))


def host_copy(value: Any) -> Any:
    """Copy dicts, lists and objects, with every tensor copied to host memory separately."""
    buffers: list[torch.Tensor] = []

    def copy_of(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        if not tensor.is_cuda or not tensor.is_contiguous():
            return tensor.to("cpu", copy=True)
        if not buffers:
            try:
                buffers.extend(torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
            except RuntimeError:  # the machine has no memory that can be pinned
                return tensor.to("cpu", copy=True)
        return copy_through(tensor, buffers, torch.cuda.Event)

    return _map(value, copy_of, copy.deepcopy)


def copy_through(tensor: torch.Tensor, buffers: Sequence[torch.Tensor], make_event: Callable[[], Any]) -> torch.Tensor:
    """Copy a contiguous tensor to host memory by two buffers of bytes: one is filled while the other is emptied.

    A GPU copies to pinned memory at the speed of its bus, to other memory at a fraction of it; but all of a checkpoint
    pinned would take host memory from everything else. When this returns, the tensor may change.
    """
    result = torch.empty_like(tensor, device="cpu")
    size = len(buffers[0])
    sources, targets = (one.view(-1).view(torch.uint8).split(size) for one in (tensor, result))
    filled: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        buffer, event = buffers[number % 2][: len(source)], make_event()
        buffer.copy_(source, non_blocking=True)
        event.record()
        filled.append((buffer, target, event))
        if len(filled) == 2:
            _empty(*filled.pop(0))
    for last in filled:
        _empty(*last)
    return result


def _empty(buffer: torch.Tensor, target: torch.Tensor, event: Any) -> None:
    event.synchronize()
    target.copy_(buffer)


def as_saved(value: Any) -> Any:
    """Copy dicts, lists and objects, with plain tensors that share memory with the given ones.

    DeepSpeed adds attributes to its tensors, which torch.save would pickle, by names that no shard may have. An enum
    becomes its value: Python 3.11.2, of Debian 12, pickles a member as a call of getattr.
    """
    return _map(value, torch.Tensor.detach, lambda other: other.value if isinstance(other, Enum) else other)


def _map(value: Any, of_tensor: Callable[[torch.Tensor], torch.Tensor], of_other: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if isinstance(value, dict):
        return type(value)((key, _map(item, of_tensor, of_other)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_map(item, of_tensor, of_other) for item in value)
    return of_other(value)


def num_tensor_bytes(value: Any) -> int:
    """Sum the bytes of all tensors in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(num_tensor_bytes(item) for item in value)
