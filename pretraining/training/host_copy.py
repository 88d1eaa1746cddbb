"""A copy of a state in host memory, which stays as it is while the training goes on."""

import copy
from typing import Any

import torch


def host_copy(value: Any) -> Any:
    """The same dicts, lists and objects, with every tensor copied to the host, on its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, host_copy(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(host_copy(item) for item in value)
    return copy.deepcopy(value)


def num_tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(num_tensor_bytes(item) for item in value)
