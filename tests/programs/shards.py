"""What a checkpoint holds of each parameter, put together from its shards by DeepSpeed's own reader of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import _zero3_merge_trainable_params

State = dict[str, dict[str, Any]]


def merge(shapes: list[dict[str, torch.Size]], flats: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Whole parameters, of the flat tensors [process][sub-group]."""
    merged: dict[str, Any] = {}
    _zero3_merge_trainable_params(merged, len(flats), flats, [SimpleNamespace(param_shapes=shapes)])
    return {name: tensor.contiguous() for name, tensor in merged.items()}


def read_state(folder: Path) -> tuple[State, dict[str, Any]]:
    """For each parameter its weights, moments, steps and hyperparameters; and what there is one of: scale, counts."""
    files = sorted(folder.glob("global_step*/*optim_states.pt"))
    assert 0 < len(files) < 10, "they are sorted by name"
    shards = [torch.load(file, weights_only=False)["optimizer_state_dict"] for file in files]
    (engine,) = (torch.load(file, weights_only=False) for file in folder.glob("global_step*/zero_pp_rank_0_*model*"))
    shapes = engine["param_shapes"]
    flats = {"weights": [shard["fp32_flat_groups"] for shard in shards]}
    states = [shard["optimizer_state_dict"]["state"] for shard in shards]
    for name in {name for state in states[0].values() for name in state} - {"step"}:
        none = [torch.zeros_like(weights) for weights in flats["weights"][0]]
        flats[name] = [[state[i].get(name, none[i]) for i in range(len(none))] for state in states]
    whole = {name: merge(shapes, tensors) for name, tensors in flats.items()}
    groups = [
        {**group, "number": number, "sub_group": sub_group}
        for number, group in enumerate(shards[0]["optimizer_state_dict"]["param_groups"])
        for sub_group in group.pop("params")
    ]
    found: State = {}
    for sub_group, names in enumerate(shapes):
        (group,) = (group for group in groups if group["sub_group"] == sub_group)
        steps = {float(state[sub_group]["step"]) for state in states}
        for name in names:
            hyperparameters = {key: value for key, value in group.items() if key not in ("sub_group", "fused")}
            found[name] = {**hyperparameters, **{key: whole[key][name] for key in whole}, "steps": steps}
    alike = {name: engine[name] for name in ("global_steps", "global_samples", "skipped_steps")}
    return found, {**alike, "scaler": vars(shards[0]["loss_scaler"])}


def assert_equal_to_the_bit(restored: Path, saved: Path) -> None:
    (ours, our_counts), (theirs, their_counts) = read_state(restored), read_state(saved)
    assert our_counts == their_counts
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                assert ours[name][key].dtype == value.dtype
                assert torch.equal(ours[name][key], value), (name, key)
            else:
                assert ours[name][key] == value, (name, key)
