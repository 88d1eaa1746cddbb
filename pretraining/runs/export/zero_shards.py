"""Read the ZeRO shards of a checkpoint, of any stage and number of ranks, memory-mapped: only what is used is read."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError, reading
from pretraining.runs.export.model_folder import config_fields
from pretraining.runs.export.zero_layout import Piece, ZeroLayout, overlapping_spans, zero_layout
from pretraining.runs.run_folder import optimizer_shards
from pretraining.runs.untrusted import load_pickle

SHARD_NAME = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states")
# Files of rank 0's engine: of stage 3, and below it, where no other rank has one.
ENGINE_OF_STAGE_3, ENGINE = "zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt"


class ZeroShards:
    """The state of each rank's ZeRO optimizer in a checkpoint, and that of the engine of rank 0.

    Every pickle of the save is opened, so that all processes reject the same one.

    Raises:
        UserError: when there are no shards, or one is not DeepSpeed's or has too few weights.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        paths = shards_by_rank(checkpoint)
        self.folder, self.num_processes = paths[0].parent, len(paths)
        content = {path.name: load_pickle(path, mmap=True) for path in sorted(self.folder.glob("*.pt"))}
        self.is_stage_3 = ENGINE_OF_STAGE_3 in content
        self.in_bf16 = paths[0].name.startswith("bf16")
        with reading(f"{checkpoint}: its ZeRO shards", remedy="use another checkpoint"):
            self.engine_state: dict[str, Any] = content[ENGINE_OF_STAGE_3 if self.is_stage_3 else ENGINE]
            self.shapes: list[Mapping[str, torch.Size]] = self.engine_state["param_shapes"]
            self.layout = layout_of(self.shapes, num_processes=self.num_processes, is_stage_3=self.is_stage_3)
            self._states: list[dict[str, Any]] = [content[path.name]["optimizer_state_dict"] for path in paths]
            self.first = self._states[0]
            self._check_lengths(paths)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The hyperparameters of each group of the optimizer, the same on all ranks."""
        return self._optimizer(0)["param_groups"]

    def weights(self, rank: int, buffer: int) -> Tensor:
        """The fp32 weights of a rank in one of its flat buffers; the padding at its end can be missing."""
        return self._weights(rank)[buffer]

    def moments(self, rank: int, buffer: int) -> dict[str, Any]:
        """The optimizer's state of a rank for a buffer; empty before its first step, e.g. at fp16's scale search."""
        return self._optimizer(rank)["state"].get(buffer, {})

    def moment(self, name: str, rank: int, buffer: int) -> Tensor:
        """One tensor of `moments`."""
        return self.moments(rank, buffer)[name]

    def copy(self, target: Tensor, name: str, piece: Piece, saved: Callable[[int, int], Tensor]) -> None:
        """Copy a piece of a parameter to its place in a buffer, from the buffers that are `saved(rank, buffer)`."""
        for span in overlapping_spans(piece, self.layout.pieces[name]):
            values = saved(span.source_rank, self.layout.buffer_of(name)).narrow(0, span.source_offset, span.length)
            target.narrow(0, span.target_offset, span.length).copy_(values)

    def _weights(self, rank: int) -> list[Tensor]:
        return self._states[rank]["fp32_flat_groups" if self.is_stage_3 else "single_partition_of_fp32_groups"]

    def _optimizer(self, rank: int) -> dict[str, Any]:
        return self._states[rank]["optimizer_state_dict" if self.is_stage_3 else "base_optimizer_state"]

    def _check_lengths(self, paths: Sequence[Path]) -> None:
        if (self.folder / "offloaded_tensors").exists():
            return
        for rank, used_lengths in enumerate(self.layout.used_lengths(self.num_processes)):
            found = [weights.numel() for weights in self._weights(rank)]
            limits = used_lengths, found, self.layout.buffer_lengths
            has_all = len({len(lengths) for lengths in limits}) == 1
            if not has_all or not all(used <= length <= most for used, length, most in zip(*limits, strict=True)):
                expected = sum(self.layout.buffer_lengths)
                raise UserError(f"{paths[rank]}: has {sum(found):,} weights of {expected:,}; use another checkpoint")


def layout_of(shapes: Sequence[Mapping[str, torch.Size]], *, num_processes: int, is_stage_3: bool) -> ZeroLayout:
    """The layout of parameters whose shapes are given by buffer, as a checkpoint has them."""
    sizes = [{name: shape.numel() for name, shape in of_buffer.items()} for of_buffer in shapes]
    return zero_layout(3 if is_stage_3 else 1, sizes, num_processes=num_processes)


class ShardedWeight:
    """A parameter whose pieces are in memory-mapped files."""

    def __init__(self, shards: ZeroShards, name: str, shape: torch.Size) -> None:
        self.shape = shape
        self._shards, self._name = shards, name

    def contiguous(self) -> Tensor:
        """The tensor in memory, in fp32."""
        flat = torch.empty(self.shape.numel())
        self._shards.copy(flat, self._name, Piece(0, 0, 0, 0, len(flat)), self._shards.weights)
        return flat.view(self.shape)


def open_shards(checkpoint: Path) -> tuple[LlamaConfig, dict[str, ShardedWeight]]:
    """The model's config and its weights by name; tied weights appear once.

    Raises:
        UserError: when the shards are missing, cannot be read, or are of another model.
    """
    config = config_of_checkpoint(checkpoint)
    shards = ZeroShards(checkpoint)
    shapes = {name: shape for of_buffer in shards.shapes for name, shape in of_buffer.items()}
    with torch.device("meta"):
        model = LlamaForCausalLM(config)  # `from_config` would partition it where ZeRO-3 is on
    if shapes != {name: parameter.shape for name, parameter in model.named_parameters()}:
        raise UserError(f"{checkpoint}: its shards are not those of the model in its config")
    return config, {name: ShardedWeight(shards, name, shape) for name, shape in shapes.items()}


def has_sharded_weights(checkpoint: Path) -> bool:
    """Whether stage 3 saved a checkpoint, which shards the weights too."""
    return any(checkpoint.glob(f"global_step*/{ENGINE_OF_STAGE_3}"))


def shards_by_rank(checkpoint: Path) -> list[Path]:
    """The optimizer shards in the order of ranks.

    Raises:
        UserError: when there are none, or not exactly one per rank in one folder.
    """
    shards = optimizer_shards(checkpoint)
    if not shards:
        raise UserError(f"{checkpoint}: has no ZeRO shards (global_step*/*_optim_states.pt)")
    by_rank = {match.group(1): path for path in shards if (match := SHARD_NAME.match(path.name))}
    ranks = [str(rank) for rank in range(len(shards))]
    if by_rank.keys() != set(ranks) or len({path.parent for path in shards}) != 1:
        raise UserError(f"{checkpoint}: its ZeRO shards are not those of one save; use another checkpoint")
    return [by_rank[rank] for rank in ranks]


def config_of_checkpoint(checkpoint: Path) -> LlamaConfig:
    """The model's config, from the checkpoint or else from the record of its run.

    Raises:
        UserError: when neither has a config, one cannot be read, or it asks for custom code.
    """
    fields = config_fields(checkpoint)
    with reading(f"{checkpoint}: the model config", remedy="restore it from a backup"):
        return LlamaConfig.from_dict(fields)
