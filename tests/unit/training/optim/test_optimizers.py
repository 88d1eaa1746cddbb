"""Optimizers on their own: bf16 moments follow AdamW and survive saving, Muon is torch's, norms have no decay."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz
from torch.utils._python_dispatch import TorchDispatchMode

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.training.optim import optimizers
from pretraining.training.optim.muon import COEFFICIENTS, MIN_NORM, NUM_ITERATIONS, orthogonalized
from pretraining.training.optim.optimizers import AdamWBf16, decay_groups, muon_groups, prepare_optimizer
from tests.rounding import BF16_ROUNDOFF, FP32_ROUNDOFF

ADAMW = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, numbers: range) -> torch.Tensor:
    """Steps with gradients that depend on the number of the step alone."""
    for number in numbers:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
    return weight.detach().clone()


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, 1000))


def test_bf16_moments_follow_adamw_and_take_half_the_bytes() -> None:
    exact, ours = weight(), weight()
    optimizer = AdamWBf16([ours], **ADAMW)
    distance = steps(torch.optim.AdamW([exact], **ADAMW), exact, range(50)) - weight()
    error = steps(optimizer, ours, range(50)) - exact
    # Rounding is off by 2^-8 / sqrt(3) of a moment, and fades as it does: sqrt(1 / (1 - 0.9^2)) times that in the
    # first, sqrt(1 / (1 - 0.95^2)) in the second, halved by its root. Together 0.006 of an update.
    assert error.norm() < 0.01 * distance.norm()
    assert ours.dtype == torch.float32
    assert [state.dtype for name, state in optimizer.state[ours].items() if name != "step"] == [torch.bfloat16] * 2


def test_the_first_step_with_bf16_moments_is_that_of_adamw() -> None:
    """The update uses the moments before they are rounded.

    A weight, of at most 1, is rounded twice (decay, update), its update of 0.01 some ten times: 4 roundoffs in all.
    """
    exact, ours = weight(), weight()
    first = steps(torch.optim.AdamW([exact], **ADAMW), exact, range(1))
    torch.testing.assert_close(steps(AdamWBf16([ours], **ADAMW), ours, range(1)), first, rtol=0, atol=4 * FP32_ROUNDOFF)


def test_bf16_moments_go_on_from_a_saved_state_to_the_bit() -> None:
    whole, first, second = weight(), weight(), weight()
    uninterrupted = steps(AdamWBf16([whole], **ADAMW), whole, range(6))
    optimizer = AdamWBf16([first], **ADAMW)
    second.data.copy_(steps(optimizer, first, range(3)))
    resumed = AdamWBf16([second], **ADAMW)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state[second]["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(steps(resumed, second, range(3, 6)), uninterrupted)


class CastDtypes(TorchDispatchMode):
    """Collects the dtype of each tensor of 1000 elements, the size of `weight`, that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == 1000:
            self.found.add(result.dtype)
        return result


@pytest.mark.parametrize("saved_in", [torch.bfloat16, torch.float32])
def test_no_moment_is_fp32_while_a_state_is_loaded(saved_in: torch.dtype) -> None:
    first, second = weight(), weight()
    optimizer, resumed = AdamWBf16([first], **ADAMW), AdamWBf16([second], **ADAMW)
    steps(optimizer, first, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][name] = saved["state"][0][name].to(saved_in)
    with CastDtypes() as casts:
        resumed.load_state_dict(saved)
    assert torch.float32 not in casts.found
    for name, value in optimizer.state[first].items():
        assert resumed.state[second][name].dtype == value.dtype
        assert torch.equal(resumed.state[second][name], value)


def test_a_state_before_the_first_step_is_loaded() -> None:
    optimizer = AdamWBf16([weight()], **ADAMW)
    optimizer.load_state_dict(AdamWBf16([weight()], **ADAMW).state_dict())
    assert not optimizer.state


def test_the_kernel_of_gpus_is_the_same_adamw() -> None:
    """Where it rounds in another order: a weight 4 roundoffs (decay, update) a step, a moment 1 of bf16."""
    group = {**ADAMW, "lr": 1e-2}
    ours, theirs = ([weight().data, *(torch.zeros(1000, dtype=torch.bfloat16) for _ in range(2))] for _ in range(2))
    for number in range(3):
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(number))
        for update, (weights, *moments) in ((optimizers._adamw, ours), (optimizers._fused_adamw, theirs)):
            update(weights, gradient, *moments, num_steps=number + 1.0, group=group)
        for exact, fused in zip(ours[1:], theirs[1:], strict=True):
            torch.testing.assert_close(fused, exact, rtol=2 * BF16_ROUNDOFF, atol=0)
            fused.copy_(exact)  # one that falls on the other side of a rounding moves the next update by 2^-8 of it
        torch.testing.assert_close(theirs[0], ours[0], rtol=0, atol=(number + 1) * 4 * FP32_ROUNDOFF)


class Copies(TorchDispatchMode):
    """Counts the tensors in fp32 that operations allocate for all weights."""

    def __init__(self, num_weights: int) -> None:
        super().__init__()
        self.found, self._num_weights = 0, num_weights

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {argument.data_ptr() for argument in args if isinstance(argument, Tensor)}
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32 and result.numel() == self._num_weights:
            self.found += result.data_ptr() not in known
        return result


@pytest.mark.parametrize("update", [optimizers._adamw, optimizers._fused_adamw])
def test_an_update_has_both_moments_in_fp32_as_planned(update: Any) -> None:
    weights, gradient = weight().data, torch.ones(1000)
    moments = [torch.zeros(1000, dtype=torch.bfloat16) for _ in range(2)]
    with Copies(1000) as copies:
        update(weights, gradient, *moments, num_steps=1.0, group=ADAMW)
    assert copies.found == 2


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = weight(), weight()
    expected = steps(AdamWBf16([whole], **ADAMW), whole, range(3))
    monkeypatch.setattr(optimizers, "ADAMW_CHUNK", 64)
    assert torch.equal(steps(AdamWBf16([chunked], **ADAMW), chunked, range(3)), expected)


def test_moments_that_bf16_cannot_follow_are_refused() -> None:
    with pytest.raises(UserError, match=r"--optim adamw_bf16 --adam_beta2 0\.999"):
        parse_pretrain_arguments("", ["--optim", "adamw_bf16", "--adam_beta2", "0.999"])


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_orthogonal_is_that_of_torch(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours = orthogonalized(matrix)
    assert torch.equal(ours, _zeropower_via_newtonschulz(matrix, COEFFICIENTS, NUM_ITERATIONS, MIN_NORM))
    # The polynomial has them in 0.68 to 1.13 (Jordan et al. 2024), with errors of bf16 in each of five iterations.
    singular_values = torch.linalg.svdvals(ours.float())
    assert singular_values.max() < 1.3
    assert singular_values.median() > 0.6


class PartitionedModel(torch.nn.Module):
    """Parameters as ZeRO-3 leaves them: empty, with their shape beside them."""

    def __init__(self, *, is_tied: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 4)
        self.layer = torch.nn.Linear(4, 4)
        self.norm = torch.nn.RMSNorm(4)
        self.head = torch.nn.Linear(4, 8, bias=False)
        if is_tied:
            self.head.weight = self.embed.weight
        for parameter in self.parameters():
            parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embed

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


@pytest.mark.parametrize(("on_norms", "of_vectors"), [(False, 0.0), (True, 0.1)])
def test_norms_and_biases_have_no_decay_unless_asked(on_norms: bool, of_vectors: float) -> None:
    model = PartitionedModel()
    matrices, vectors = decay_groups(model, weight_decay=0.1, on_norms=on_norms)
    assert {id(parameter) for parameter in vectors["params"]} == {id(model.layer.bias), id(model.norm.weight)}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, of_vectors)
    assert len(matrices["params"]) == 3


@pytest.mark.parametrize("is_tied", [False, True])
def test_muon_is_for_the_matrices_of_the_layers(is_tied: bool) -> None:
    model = PartitionedModel(is_tied=is_tied)
    groups = muon_groups(model, weight_decay=0.1, on_norms=False)
    assert [group["muon"] for group in groups] == [False, False, True]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1]
    assert [id(parameter) for parameter in groups[2]["params"]] == [id(model.layer.weight)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_an_offloaded_optimizer_is_the_one_that_was_asked_for() -> None:
    for name in ("adamw", "muon"):
        config: dict = {}
        prepare_optimizer(name, config)
        assert config == {"zero_force_ds_cpu_optimizer": False}
    asked = {"zero_force_ds_cpu_optimizer": True}
    prepare_optimizer("adamw", asked)
    assert asked == {"zero_force_ds_cpu_optimizer": True}
    with pytest.raises(UserError, match="zero_force_ds_cpu_optimizer is true"):
        prepare_optimizer("adamw_bf16", {"zero_force_ds_cpu_optimizer": True})
