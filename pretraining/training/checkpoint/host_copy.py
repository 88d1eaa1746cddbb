"""A state as it is saved: a copy in host memory, which stays as it is while the training continues, or itself."""

import copy
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch


def host_copy(value: Any) -> Any:
    """The same dicts, lists and objects, with every tensor copied to the host, on its own."""
    return _map(value, lambda tensor: tensor.detach().to("cpu", copy=True), copy.deepcopy)


def as_saved(value: Any) -> Any:
    """The same dicts, lists and objects, with the same numbers in plain tensors, which take no memory.

    DeepSpeed hangs attributes on its tensors, which torch.save would pickle as well, by names that no shard may have.
    Of an enum's member the value is left: Python 3.11.2, that of Debian 12, pickles a member as a call of getattr.
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
    """Bytes of all tensors in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(num_tensor_bytes(item) for item in value)
