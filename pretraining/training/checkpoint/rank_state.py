"""Assemble the ZeRO state that a process would have saved, from the shards of other processes or of another stage."""

from collections.abc import Callable
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor

from pretraining.runs.export.zero_shards import ZeroShards, layout_of
from pretraining.training.distributed.deepspeed_checkpoints import group_of_buffer
from pretraining.training.distributed.deepspeed_internals import parameter_shapes

# How an optimizer computes, not what: these follow from its present device.
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow")


class RankState:
    """The state of this process, taken from the shards of a checkpoint."""

    def __init__(self, shards: ZeroShards, engine: DeepSpeedEngine) -> None:
        self._shards, self._zero = shards, engine.optimizer
        self._is_stage_3 = engine.zero_optimization_partition_weights()
        shapes = parameter_shapes(engine)
        self._layout = layout_of(shapes, num_processes=dist.get_world_size(), is_stage_3=self._is_stage_3)
        self._names = [list(of_buffer) for of_buffer in shapes]

    def state_dict(self) -> dict[str, Any]:
        """The state dict of DeepSpeed's optimizer of this stage.

        The weights are a generator: those of each buffer are copied to their device before the next are assembled.
        """
        buffers = range(len(self._names))
        weights = (self._flat(buffer, self._shards.weights) for buffer in buffers)
        optimizer = {
            "state": {buffer: self._moments(buffer) for buffer in buffers},
            "param_groups": [self._group(number) for number in range(len(self._zero.optimizer.param_groups))],
        }
        if self._is_stage_3:
            return {**self._scaling(), "optimizer_state_dict": optimizer, "fp32_flat_groups": weights}
        named = {"base_optimizer_state": optimizer, "single_partition_of_fp32_groups": weights}
        return {**self._scaling(), **named, "ds_version": deepspeed.__version__}

    def _scaling(self) -> dict[str, Any]:
        """The loss scale, which fp16 searches and bf16 and fp32 do not have: the saved one where both are the same."""
        saved = self._shards.first
        is_saved = has_same_loss_scaling(self._shards, self._zero) and "loss_scaler" in saved
        scaling = saved if is_saved else vars(self._zero)
        return {name: scaling[name] for name in SCALING if name in scaling}

    def _moments(self, buffer: int) -> dict[str, Any]:
        # The old buffers within a new one were stepped together, so the first has the step count and the types.
        return {
            name: self._scalar(value) if _is_scalar(value) else self._flat(buffer, partial(self._shards.moment, name))
            for name, value in self._shards.moments(0, self._saved_buffer(buffer)).items()
        }

    def _saved_buffer(self, buffer: int) -> int:
        """The saved buffer with the first parameter of a buffer."""
        return self._shards.layout.buffer_of(self._names[buffer][0])

    def _scalar(self, value: Any) -> Any:
        """A step count, copied for each buffer: an optimizer adds to it in place."""
        if isinstance(self._zero.optimizer, DeepSpeedCPUAdam):
            return int(value)  # as its C++ requires
        return value.clone() if isinstance(value, Tensor) else value

    def _group(self, number: int) -> dict[str, Any]:
        """The saved hyperparameters that the optimizer has."""
        own, saved = self._zero.optimizer.param_groups[number], self._shards.groups[number]
        kept = {name: saved[name] for name in own if name in saved and name not in IMPLEMENTATION}
        groups = group_of_buffer(self._zero)
        return {**own, **kept, "params": [buffer for buffer in groups if groups[buffer] == number]}

    def _flat(self, buffer: int, saved: Callable[[int, int], Tensor]) -> Tensor:
        """A flat tensor of this process, assembled from `saved(rank, buffer)`; zeros are its padding."""
        dtype = saved(0, self._saved_buffer(buffer)).dtype
        flat = torch.zeros(self._layout.buffer_lengths[buffer], dtype=dtype)
        for name, piece in self._layout.own_pieces(dist.get_rank()):
            if piece.buffer == buffer:
                self._shards.copy(flat, name, piece, saved)
        return flat


def has_same_loss_scaling(shards: ZeroShards, zero: Any) -> bool:
    """Whether both search a loss scale, or neither; that of bf16 in stage 1 has no name for it."""
    return bool(shards.first.get("dynamic_loss_scale")) == bool(getattr(zero, "dynamic_loss_scale", False))


def indivisible_state(shards: ZeroShards) -> str | None:
    """The name of a part of the optimizer's state that is not one number per weight, if any."""
    for buffer, length in enumerate(shards.layout.buffer_lengths):
        for name, value in shards.moments(0, buffer).items():
            if not _is_scalar(value) and not _is_like_weights(value, length):
                return name
    return None


def _is_scalar(value: Any) -> bool:
    return value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, int | float)


def _is_like_weights(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.shape == (length,) and value.is_floating_point()
