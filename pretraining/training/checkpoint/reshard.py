"""Load a ZeRO-3 checkpoint with another number of processes, other sub-groups, offload or precision.

DeepSpeed reads shards only with as many processes as wrote them. For others it has the universal checkpoint, which is
not used here: it takes another 12 bytes per parameter on disk (84 GB for Llama-2-7B), a conversion between the runs,
and an optimizer with the two moments of Adam. In 0.19.8 its loading is also wrong (zero/stage3.py,
`load_hp_checkpoint_state_from_checkpoint_dir_stage3`): every parameter group gets the hyperparameters of the first, so
norms get weight decay, and all sub-groups share one tensor as their `step`, which then counts each step many times.

But ZeRO-3's layout is simple (partitions.py), and a checkpoint contains its own. So each process copies the spans that
are its own now from the old shards, mapped into memory, and assembles the state that DeepSpeed would have read from a
file of this process. Nothing is written, and no process holds more than its part: one of four processes 286 MB of 100 M
parameters that two had saved as 1.2 GB.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor
from transformers import set_seed

from pretraining.errors import UserError, reading
from pretraining.runs.export.zero_shards import open_states, shards_by_rank
from pretraining.runs.run_folder import optimizer_shards, read_trainer_state
from pretraining.runs.untrusted import load_pickle
from pretraining.training.checkpoint.partitions import PartitionLayout, overlapping_spans, partition_layouts
from pretraining.training.distributed.deepspeed_internals import (
    group_of_sub_group,
    load_zero_state,
    parameter_shapes,
    set_checkpoint_engine,
)

# How an optimizer computes, not what: these follow from its present device.
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")


class CheckpointShards:
    """The shards of a checkpoint, mapped into memory: only what is used is read."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.folder = shards_by_rank(checkpoint)[0].parent
        self._states, self.engine_state = open_states(checkpoint)
        self.shapes: list[Mapping[str, torch.Size]] = self.engine_state["param_shapes"]
        self.num_processes = len(self._states)
        self.in_bf16 = any(self.folder.glob("bf16*_optim_states.pt"))
        self.first = self._states[0]
        self.groups: list[dict[str, Any]] = self.first["optimizer_state_dict"]["param_groups"]

    def weights(self, rank: int, sub_group: int) -> Tensor:
        """The fp32 weights of a rank in a sub-group."""
        return self._states[rank]["fp32_flat_groups"][sub_group]

    def moments(self, rank: int, sub_group: int) -> dict[str, Any]:
        """The optimizer's state of a rank in a sub-group; empty before its first step, e.g. at fp16's scale search."""
        return self._states[rank]["optimizer_state_dict"]["state"].get(sub_group, {})

    def moment(self, name: str, rank: int, sub_group: int) -> Tensor:
        """One tensor of `moments`."""
        return self.moments(rank, sub_group)[name]

    def check_divisible(self, *, swaps: bool, num_processes: int) -> None:
        """Reject a state that is not one number per weight, or that is or was to be swapped to a disk.

        Raises:
            UserError: with the number of processes that can resume, or the setting of sub-groups.
        """
        sub_groups = enumerate(self.first["fp32_flat_groups"])
        kept = [(name, value, weights) for i, weights in sub_groups for name, value in self.moments(0, i).items()]
        whole = [name for name, value, weights in kept if not _is_scalar(value) and not _is_like(value, weights)]
        if swaps or any(self.folder.glob("offloaded_tensors")):
            whole = ["on nvme"]
        if whole:
            remedy = f"among others; start with --num_gpus={self.num_processes}"
            if num_processes == self.num_processes:
                remedy = f"in another way; use precision, --optim and sub_group_size of {self._checkpoint}/run.json"
            raise UserError(
                f"--resume {self._checkpoint}: was saved by {_describe(self.num_processes)}, and its optimizer state "
                f"({whole[0]}) cannot be divided {remedy}"
            )


class UntrustedReader(TorchCheckpointEngine):
    """Reads for DeepSpeed, which would unpickle whatever a shard names."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read into memory: a mapped optimizer state would keep the disk space of a removed checkpoint."""
        return load_pickle(Path(path), mmap=False)


def check_can_reshard(checkpoint: Path, ds_config: Mapping[str, Any], *, num_processes: int) -> None:
    """Reject, before anything is loaded, a checkpoint that only as many processes as saved it can resume.

    Raises:
        UserError: with that number of processes.
    """
    if len(optimizer_shards(checkpoint)) != num_processes:
        offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
        with reading(f"--resume {checkpoint}: its shards", remedy="use another checkpoint"):
            CheckpointShards(checkpoint).check_divisible(
                swaps=offload.get("device") == "nvme", num_processes=num_processes
            )


def describe_checkpoint(checkpoint: Path, *, num_processes: int) -> str:
    """Name a checkpoint, and the number of processes that saved it if it is another."""
    saved_by = len(optimizer_shards(checkpoint))
    return f"{checkpoint}" + (f" (saved by {_describe(saved_by)}, now {num_processes})" * (saved_by != num_processes))


def load_checkpoint(engine: DeepSpeedEngine, checkpoint: Path) -> None:
    """Load weights, optimizer, loss scale and counts; DeepSpeed does if the processes and their layout are the same.

    The optimizer state of a run that rolls back is freed first: torch would hold it until the saved one is on the GPU,
    which for 7B on one GPU is 54 GB twice.

    Raises:
        UserError: when only as many processes as saved it can resume, or a shard is not one of DeepSpeed's.
    """
    with reading(f"--resume {checkpoint}: its shards", remedy="use another checkpoint"):
        shards = CheckpointShards(checkpoint)
        has_same_layout = _has_same_layout(shards, engine)
    if has_same_layout:
        _free_optimizer_state(engine)
        set_checkpoint_engine(engine, UntrustedReader())
        engine.load_checkpoint(str(checkpoint), tag=shards.folder.name)  # not what its file `latest` names
        return
    shards.check_divisible(swaps=engine.zero_nvme_offload_optimizer(), num_processes=dist.get_world_size())
    _free_optimizer_state(engine)
    load_zero_state(engine, dist.get_rank(), _RankState(shards, engine).zero_state_dict(), shards.engine_state)


def _free_optimizer_state(engine: DeepSpeedEngine) -> None:
    engine.optimizer.optimizer.state.clear()
    torch.cuda.empty_cache()  # does nothing without a GPU


def reseed_for_world_size(checkpoint: Path, *, seed: int, process: int) -> None:
    """Seed the random states of another number of processes, the same at each such resume.

    The saved ones are of no use: each process has other blocks now, and so draws other dropout masks. numpy derives
    independent seeds from seed, step and process.
    """
    step = read_trainer_state(checkpoint).global_step
    set_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))


class _RankState:
    """Assembles the state that this process would have saved."""

    def __init__(self, shards: CheckpointShards, engine: DeepSpeedEngine) -> None:
        self._shards = shards
        self._zero = engine.optimizer
        self._shapes = parameter_shapes(engine)
        self._sources = _layouts(shards.shapes, num_processes=shards.num_processes)
        self._targets = _layouts(self._shapes, num_processes=dist.get_world_size())

    def zero_state_dict(self) -> dict[str, Any]:
        """The state dict of DeepSpeed's optimizer of stage 3."""
        saved = self._shards.first
        # fp16 searches its loss scale, bf16 and fp32 have none: it is restored only where both are the same.
        scaling = saved if _same_loss_scaling(self._shards, self._zero) else vars(self._zero)
        numbers = range(len(self._shapes))
        return {
            **{name: scaling[name] for name in ("loss_scaler", "dynamic_loss_scale", "overflow")},
            "optimizer_state_dict": {
                "state": {number: self._moments(number) for number in numbers},
                "param_groups": [self._group(number) for number in range(len(self._shards.groups))],
            },
            # A generator: each is copied to its device before the next is assembled.
            "fp32_flat_groups": (self._flat(number, self._shards.weights) for number in numbers),
        }

    def _moments(self, sub_group: int) -> dict[str, Any]:
        # The old sub-groups within a new one were stepped together, so the first has the step count and the types.
        first = self._sources[next(iter(self._shapes[sub_group]))].sub_group
        return {
            name: self._scalar(value)
            if _is_scalar(value)
            else self._flat(sub_group, partial(self._shards.moment, name))
            for name, value in self._shards.moments(0, first).items()
        }

    def _scalar(self, value: Any) -> Any:
        """A step count, copied for each sub-group: an optimizer adds to it in place."""
        if isinstance(self._zero.optimizer, DeepSpeedCPUAdam):
            return int(value)  # as its C++ requires
        return value.clone() if isinstance(value, Tensor) else value

    def _group(self, number: int) -> dict[str, Any]:
        """The saved hyperparameters that the optimizer has."""
        own, saved = self._zero.optimizer.param_groups[number], self._shards.groups[number]
        kept = {name: saved[name] for name in own if name in saved and name not in IMPLEMENTATION}
        groups = group_of_sub_group(self._zero)
        return {**own, **kept, "params": [sub_group for sub_group in groups if groups[sub_group] == number]}

    def _flat(self, sub_group: int, saved: Callable[[int, int], Tensor]) -> Tensor:
        """A flat tensor of this process, assembled from `saved(rank, sub-group)`."""
        names = list(self._shapes[sub_group])
        dtype = saved(0, self._sources[names[0]].sub_group).dtype
        flat = torch.zeros(sum(self._targets[name].length for name in names), dtype=dtype)
        for name in names:
            source = self._sources[name]
            for span in overlapping_spans(dist.get_rank(), self._targets[name], source):
                values = saved(span.source_rank, source.sub_group).narrow(0, span.source_offset, span.length)
                flat.narrow(0, span.target_offset, span.length).copy_(values)
        return flat


def _has_same_layout(shards: CheckpointShards, engine: DeepSpeedEngine) -> bool:
    """Whether each process would have saved its own file, with the same optimizer and in the same layout."""
    groups = engine.optimizer.optimizer.param_groups
    return (
        shards.num_processes == dist.get_world_size()
        and shards.shapes == parameter_shapes(engine)
        and shards.in_bf16 == engine.bfloat16_enabled()
        and _same_loss_scaling(shards, engine.optimizer)
        and [group.keys() for group in shards.groups] == [group.keys() for group in groups]
    )


def _same_loss_scaling(shards: CheckpointShards, zero: Any) -> bool:
    return shards.first["dynamic_loss_scale"] == zero.dynamic_loss_scale


def _layouts(shapes: Sequence[Mapping[str, torch.Size]], *, num_processes: int) -> dict[str, PartitionLayout]:
    sizes = [{name: shape.numel() for name, shape in sub_group.items()} for sub_group in shapes]
    return partition_layouts(sizes, num_processes=num_processes)


def _is_scalar(value: Any) -> bool:
    return value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, int | float)


def _is_like(value: Any, weights: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weights.shape and value.is_floating_point()


def _describe(num_processes: int) -> str:
    return f"{num_processes} process{'es' * (num_processes != 1)}"
