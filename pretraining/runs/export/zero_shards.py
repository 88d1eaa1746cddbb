"""Read the fp32 master weights from the ZeRO shards of a checkpoint, from any number of ranks, one tensor at a time."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError, reading
from pretraining.runs.export.model_folder import config_fields
from pretraining.runs.run_folder import optimizer_shards
from pretraining.runs.untrusted import load_pickle

SHARD_NAME = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states")


class ShardedWeight(Protocol):
    """A tensor whose partitions are in memory-mapped files."""

    shape: torch.Size

    def contiguous(self) -> torch.Tensor:
        """The tensor in memory."""


def open_shards(checkpoint: Path) -> tuple[LlamaConfig, dict[str, ShardedWeight]]:
    """The model's config and its weights by name; tied weights appear once.

    Raises:
        UserError: when the shards are missing, cannot be read, or are of another model.
    """
    config = config_of_checkpoint(checkpoint)
    weights = _lazy_weights(checkpoint)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)  # `from_config` would partition it where ZeRO-3 is on
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        raise UserError(f"{checkpoint}: its shards are not those of the model in its config")
    return config, weights


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


def open_states(checkpoint: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The state of each rank's ZeRO optimizer, and that of the engine of rank 0, memory-mapped.

    Every pickle of the save is opened, so that all processes reject the same one.

    Raises:
        UserError: when there are no shards, or one is not DeepSpeed's or has too few weights.
    """
    paths = shards_by_rank(checkpoint)
    folder = paths[0].parent
    content = {path.name: load_pickle(path, mmap=True) for path in sorted(folder.glob("*.pt"))}
    with reading(f"{checkpoint}: its ZeRO shards", remedy="use another checkpoint"):
        states = [content[path.name]["optimizer_state_dict"] for path in paths]
        engine = content["zero_pp_rank_0_mp_rank_00_model_states.pt"]
        sizes = [[shape.numel() for shape in shapes.values()] for shapes in engine["param_shapes"]]
        expected = [sum(-(-size // len(paths)) for size in of_group) for of_group in sizes]
        for path, state in zip(paths, states, strict=True):
            found = [flat.numel() for flat in state["fp32_flat_groups"]]
            if found != expected and not (folder / "offloaded_tensors").exists():
                raise UserError(f"{path}: has {sum(found):,} weights of {sum(expected):,}; use another checkpoint")
    return states, engine


def _lazy_weights(checkpoint: Path) -> dict[str, ShardedWeight]:
    states, engine = open_states(checkpoint)
    # Imported here, because it takes a second and other sources of weights do not need it.
    from deepspeed.utils.zero_to_fp32 import _zero3_merge_trainable_params

    flats = [state["fp32_flat_groups"] for state in states]
    weights: dict[str, ShardedWeight] = {}
    printed = io.StringIO()  # its messages are dropped; no tensor is read yet
    with (
        reading(f"{checkpoint}: its ZeRO shards", remedy="use another checkpoint"),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        _zero3_merge_trainable_params(weights, len(flats), flats, [SimpleNamespace(**engine)])
    return weights


def config_of_checkpoint(checkpoint: Path) -> LlamaConfig:
    """The model's config, from the checkpoint or else from the record of its run.

    Raises:
        UserError: when neither has a config, one cannot be read, or it asks for custom code.
    """
    fields = config_fields(checkpoint)
    with reading(f"{checkpoint}: the model config", remedy="restore it from a backup"):
        return LlamaConfig.from_dict(fields)
