"""What a checkpoint holds of each parameter, put together from its shards by DeepSpeed's own reader of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.utils import zero_to_fp32

State = dict[str, dict[str, Any]]
LOWER_STAGES = ("single_partition_of_fp32_groups", "base_optimizer_state")  # of fp32 weights, of the optimizer


def merge(
    shapes: list[dict[str, torch.Size]], flats: list[list[torch.Tensor]], *, is_stage_3: bool = True
) -> dict[str, torch.Tensor]:
    """Whole parameters, of the flat tensors [process][buffer]."""
    merged: dict[str, Any] = {}
    merge_all = zero_to_fp32._zero3_merge_trainable_params if is_stage_3 else zero_to_fp32._zero2_merge_trainable_params
    merge_all(merged, len(flats), flats, [SimpleNamespace(param_shapes=shapes)])
    return {name: tensor.contiguous() for name, tensor in merged.items()}


def read_state(folder: Path) -> tuple[State, dict[str, Any]]:
    """For each parameter its weights, moments, steps and hyperparameters; and what there is one of: scale, counts.

    Of any stage: where a parameter is in the shards is not in it.
    """
    files = sorted(folder.glob("global_step*/*optim_states.pt"))
    assert 0 < len(files) < 10, "they are sorted by name"
    shards = [torch.load(file, weights_only=False)["optimizer_state_dict"] for file in files]
    (engine,) = (
        torch.load(file, weights_only=False)
        for file in folder.glob("global_step*/*_model_states.pt")
        if file.name.startswith(("mp_rank_00", "zero_pp_rank_0_"))
    )
    is_stage_3, shapes = "fp32_flat_groups" in shards[0], engine["param_shapes"]
    weights, optimizer = ("fp32_flat_groups", "optimizer_state_dict") if is_stage_3 else LOWER_STAGES
    flats = {"weights": [shard[weights] for shard in shards]}
    states = [shard[optimizer]["state"] for shard in shards]
    for name in {name for state in states[0].values() for name in state} - {"step"}:
        none = [torch.zeros_like(weights) for weights in flats["weights"][0]]
        flats[name] = [[state[i].get(name, none[i]) for i in range(len(none))] for state in states]
    whole = {name: merge(shapes, tensors, is_stage_3=is_stage_3) for name, tensors in flats.items()}
    groups = [
        {**group, "number": number, "buffer": buffer}
        for number, group in enumerate(shards[0][optimizer]["param_groups"])
        for buffer in group.pop("params")
    ]
    found: State = {}
    for buffer, names in enumerate(shapes):
        (group,) = (group for group in groups if group["buffer"] == buffer)
        steps = {float(state[buffer]["step"]) for state in states}
        for name in names:
            hyperparameters = {key: value for key, value in group.items() if key not in ("buffer", "fused")}
            found[name] = {**hyperparameters, **{key: whole[key][name] for key in whole}, "steps": steps}
    alike = {name: engine[name] for name in ("global_steps", "global_samples", "skipped_steps")}
    scaler = vars(shards[0]["loss_scaler"]) if "loss_scaler" in shards[0] else {}  # of bf16 in stage 1
    return found, {**alike, "scaler": scaler if scaler.get("cur_scale", 1) != 1 else {}}


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
