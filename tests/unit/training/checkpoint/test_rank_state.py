"""What a process takes over from the shards of other processes and stages: each number, to its place, and no other."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler

from pretraining.runs.export.zero_shards import ZeroShards, layout_of
from pretraining.training.checkpoint import rank_state
from pretraining.training.checkpoint.rank_state import RankState, indivisible_state

Shapes = list[Mapping[str, torch.Size]]
State = dict[str, Any]
# Two of each do not divide by 2 or 3; the second group is smaller than the padding of six ranks.
SHAPES = {"embed": (7, 3), "query": (3, 3), "down": (5, 2), "norm": (3,), "bias": (1,)}
DECAYED, OTHERS = ["embed", "query", "down"], ["norm", "bias"]
HYPERPARAMETERS = [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.1, "weight_decay": 0.0}]


def shapes_of(*buffers: list[str]) -> Shapes:
    return [OrderedDict((name, torch.Size(SHAPES[name])) for name in names) for names in buffers]


# Of stage 3 in two sub-groups of the first group; below it in another order of the parameters, as of another model's.
OF_STAGE_3, BELOW = shapes_of(["embed"], ["query", "down"], OTHERS), shapes_of(DECAYED[::-1], OTHERS[::-1])
GROUPS_OF_STAGE_3, GROUPS_BELOW = {0: 0, 1: 0, 2: 1}, {0: 0, 1: 1}


class Optimizer:
    """What is read of DeepSpeed's optimizer of a stage."""

    def __init__(self, groups: dict[int, int]) -> None:
        self.optimizer = SimpleNamespace(param_groups=[{**group, "params": []} for group in HYPERPARAMETERS])
        self.sub_group_to_group_id = groups
        self.loss_scaler, self.dynamic_loss_scale, self.overflow = LossScaler(1.0), False, False


def write_checkpoint(folder: Path, states: list[State], shapes: Shapes, *, is_stage_3: bool) -> ZeroShards:
    shards = folder / "checkpoint-1/global_step1"
    shards.mkdir(parents=True)
    for rank, state in enumerate(states):
        torch.save({"optimizer_state_dict": state}, shards / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if is_stage_3 else "mp_rank_00_model_states.pt"
    torch.save({"param_shapes": shapes}, shards / name)
    return ZeroShards(shards.parent)


def engine_with(optimizer: Optimizer, shapes: Shapes) -> Any:
    return SimpleNamespace(
        optimizer=optimizer,
        zero_optimization_partition_weights=lambda: optimizer.sub_group_to_group_id is GROUPS_OF_STAGE_3,
        _get_zero_param_shapes=lambda: shapes,
    )


def assembled(
    shards: ZeroShards, shapes: Shapes, groups: dict[int, int], monkeypatch: pytest.MonkeyPatch, *, ranks: int
) -> list[State]:
    """The states of as many processes, whose scaler no shard may have."""
    engine, states = engine_with(Optimizer(groups), shapes), []
    monkeypatch.setattr(rank_state.dist, "get_world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(rank_state.dist, "get_rank", lambda rank=rank: rank)
        state = {name: value for name, value in RankState(shards, engine).state_dict().items() if name != "loss_scaler"}
        weights = "fp32_flat_groups" if groups is GROUPS_OF_STAGE_3 else "single_partition_of_fp32_groups"
        states.append({**state, weights: list(state[weights])})
    return states


def saved_by_stage_3(ranks: int) -> list[State]:
    """Each number is another one; zeros are padding."""
    layout = layout_of(OF_STAGE_3, num_processes=ranks, is_stage_3=True)
    numbers = iter(torch.arange(1.0, 1e4))
    states = []
    for rank in range(ranks):
        kinds = []
        for _ in ("weights", "exp_avg", "exp_avg_sq"):
            buffers = [torch.zeros(length) for length in layout.buffer_lengths]
            for _, piece in layout.own_pieces(rank):
                own = [next(numbers) for _ in range(piece.length)]
                buffers[piece.buffer][piece.offset : piece.offset + piece.length] = torch.stack(own)
            kinds.append(buffers)
        state = {i: {"step": torch.tensor(5.0), "exp_avg": kinds[1][i], "exp_avg_sq": kinds[2][i]} for i in range(3)}
        groups = [{**HYPERPARAMETERS[0], "params": [0, 1]}, {**HYPERPARAMETERS[1], "params": [2]}]
        optimizer = {"state": state, "param_groups": groups}
        scaling = {"dynamic_loss_scale": False, "overflow": False}
        states.append({**scaling, "optimizer_state_dict": optimizer, "fp32_flat_groups": kinds[0]})
    return states


@pytest.mark.parametrize("there", [1, 2, 3, 6])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_there_and_back_to_stage_3_all_bytes_are_the_same(
    ranks: int, there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = saved_by_stage_3(ranks)
    start = write_checkpoint(tmp_path / "start", saved, OF_STAGE_3, is_stage_3=True)
    below = assembled(start, BELOW, GROUPS_BELOW, monkeypatch, ranks=there)
    assert all(len(state["base_optimizer_state"]["state"]) == len(BELOW) for state in below)
    middle = write_checkpoint(tmp_path / "middle", below, BELOW, is_stage_3=False)
    back = assembled(middle, OF_STAGE_3, GROUPS_OF_STAGE_3, monkeypatch, ranks=ranks)
    assert repr(back) == repr(saved)
    assert [parts(state) for state in below] != [parts(state) for state in saved], "nothing was moved"


def parts(state: State) -> list[list[float]]:
    weights = state.get("fp32_flat_groups") or state["single_partition_of_fp32_groups"]
    return [flat.tolist() for flat in weights]


def test_padding_that_is_not_saved_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSpeed saves weights below stage 3, but neither their moments nor what BF16_Optimizer saves."""
    start = write_checkpoint(tmp_path / "start", saved_by_stage_3(2), OF_STAGE_3, is_stage_3=True)
    below = assembled(start, BELOW, GROUPS_BELOW, monkeypatch, ranks=6)
    layout = layout_of(BELOW, num_processes=6, is_stage_3=False)
    cut = [
        {**state, "single_partition_of_fp32_groups": [
            flat[:length].clone()
            for flat, length in zip(state["single_partition_of_fp32_groups"], layout.used_lengths(6)[rank], strict=True)
        ]}
        for rank, state in enumerate(below)
    ]  # fmt: skip
    assert any(0 in flat.shape for state in cut for flat in state["single_partition_of_fp32_groups"])
    middle = write_checkpoint(tmp_path / "middle", cut, BELOW, is_stage_3=False)
    assert indivisible_state(middle) is None
    back = assembled(middle, OF_STAGE_3, GROUPS_OF_STAGE_3, monkeypatch, ranks=2)
    assert repr(back) == repr(saved_by_stage_3(2))


@pytest.mark.parametrize(
    ("searched", "searches", "expected"), [(True, True, 8.0), (True, False, 1.0), (False, True, 1.0)]
)
def test_the_loss_scale_is_that_of_the_checkpoint_where_both_search_one(
    searched: bool, searches: bool, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_state.dist, "get_world_size", lambda: 1)
    saved = {**saved_by_stage_3(1)[0], "loss_scaler": LossScaler(8.0), "dynamic_loss_scale": searched}
    shards = write_checkpoint(tmp_path, [saved], OF_STAGE_3, is_stage_3=True)
    zero: Any = Optimizer(GROUPS_BELOW)
    zero.dynamic_loss_scale = searches
    assert RankState(shards, engine_with(zero, BELOW))._scaling()["loss_scaler"].cur_scale == expected
