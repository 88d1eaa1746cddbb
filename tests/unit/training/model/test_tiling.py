"""Tiles change what exists at once, not what is computed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.model.loss import token_losses
from pretraining.training.model.tiling import tile_layers, tiled_token_losses
from tests.rounding import assert_same_sums, path_length

BATCH, LENGTH, HIDDEN, VOCABULARY = 2, 11, 16, 50
# Sums of a head and its loss: logits, softmax, and back; and those of a weight's gradient, over all tokens.
HEAD_TERMS = 2 * (HIDDEN + VOCABULARY) + BATCH * LENGTH


def make_case(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states and labels, the first tokens of each block ignored, and one at the end."""
    torch.manual_seed(0)
    lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False).to(dtype)
    hidden = torch.randn(BATCH, LENGTH, HIDDEN).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (BATCH, LENGTH))
    labels[:, :4] = IGNORED_LABEL
    labels[1, -1] = IGNORED_LABEL
    return lm_head, hidden, labels


def plain_losses(lm_head: nn.Linear, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = lm_head(hidden).float()
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view_as(labels), logits.argmax(-1) == labels


def gradients(loss: Tensor, lm_head: nn.Linear, hidden: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (lm_head.weight, hidden))


@pytest.mark.parametrize("num_tiles", [1, 2, 3, 5, 22, 100])
def test_tiles_give_the_plain_loss_its_parts_and_its_gradients(num_tiles: int) -> None:
    lm_head, hidden, labels = make_case()
    expected, is_likeliest = plain_losses(lm_head, hidden, labels)
    loss_sum, token_losses, is_correct = tiled_token_losses(lm_head, hidden, labels, num_tiles=num_tiles)
    assert_same_sums(loss_sum, expected.sum(), HEAD_TERMS)
    assert_same_sums(token_losses, expected, HEAD_TERMS)
    assert token_losses.dtype == torch.float32
    assert not token_losses.requires_grad
    assert is_correct.dtype == torch.bool
    assert torch.equal(is_correct, is_likeliest)
    # Divided by the number of tokens, as a trainer does: the incoming gradient is not 1.
    for ours, plain in zip(
        *(gradients(loss / 17, lm_head, hidden) for loss in (loss_sum, expected.sum())), strict=True
    ):
        assert_same_sums(ours, plain, HEAD_TERMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tie_for_the_highest_logit_is_correct_with_tiles_and_without(dtype: torch.dtype) -> None:
    """Tokens 3 and 7 have equal rows in the head, and are likelier than the rest, of which none is right."""
    lm_head, hidden, labels = make_case(dtype)
    with torch.no_grad():
        lm_head.weight[3] = lm_head.weight[7] = 10 * hidden.detach().sum(dim=(0, 1))
        hidden.copy_(hidden.sum(dim=(0, 1)))
    labels[:, 4:] = torch.tensor([3, 7, 5, 3, 7, 5, 5])
    untiled = token_losses(SimpleNamespace(logits=lm_head(hidden)), labels)
    for num_tiles in (1, 3):
        *_, is_correct = tiled_token_losses(lm_head, hidden, labels, num_tiles=num_tiles)
        assert torch.equal(is_correct, (labels == 3) | (labels == 7))
        assert torch.equal(is_correct, untiled.is_correct)


def test_nothing_is_correct_where_a_logit_is_nan() -> None:
    lm_head, hidden, labels = make_case()
    with torch.no_grad():
        lm_head.weight[7] = torch.nan
    assert not tiled_token_losses(lm_head, hidden, labels, num_tiles=2)[2].any()
    assert not token_losses(SimpleNamespace(logits=lm_head(hidden)), labels).is_correct.any()


def test_large_logits_are_as_exact_as_cross_entropy_in_fp64() -> None:
    """exp of one of them overflows. Of small integers and eighths, they are the same in both to the bit."""
    lm_head, hidden, labels = make_case()
    with torch.no_grad():
        lm_head.weight.mul_(3000).round_()
        hidden.copy_((8 * hidden).round() / 8)
    exact_head, exact_hidden = copy.deepcopy(lm_head).double(), hidden.detach().double().requires_grad_()
    logits = exact_head(exact_hidden)
    assert logits.max() > 300
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss_sum, *_ = tiled_token_losses(lm_head, hidden, labels, num_tiles=4)
    assert torch.equal(lm_head(hidden).double(), logits)
    assert_same_sums(loss_sum.double(), expected, HEAD_TERMS)
    found, exact = gradients(loss_sum, lm_head, hidden), gradients(expected, exact_head, exact_hidden)
    for ours, theirs in zip(found, exact, strict=True):
        assert_same_sums(ours.double(), theirs, HEAD_TERMS)


def test_a_second_backward_is_refused_and_not_scaled_twice() -> None:
    lm_head, hidden, labels = make_case()
    loss = tiled_token_losses(lm_head, hidden, labels, num_tiles=3)[0] / 17
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tokens_without_a_label_count_nothing() -> None:
    """In the first of these tiles, and in all of them."""
    lm_head, hidden, labels = make_case()
    labels[0] = IGNORED_LABEL
    for asked in (labels, torch.full_like(labels, IGNORED_LABEL)):
        loss_sum, token_losses, is_correct = tiled_token_losses(lm_head, hidden, asked, num_tiles=4)
        weight_gradient, hidden_gradient = gradients(loss_sum, lm_head, hidden)
        ignored = asked == IGNORED_LABEL
        assert not token_losses[ignored].any()
        assert not is_correct[ignored].any()
        assert not hidden_gradient[ignored].any()
        assert weight_gradient.any() == loss_sum.bool() == (not ignored.all())


def test_micro_steps_add_up() -> None:
    lm_head, hidden, labels = make_case()
    plain = copy.deepcopy(lm_head)
    for scale in (1.0, 0.25):
        (tiled_token_losses(lm_head, hidden, labels, num_tiles=3)[0] * scale).backward()
        (plain_losses(plain, hidden, labels)[0].sum() * scale).backward()
    assert_same_sums(lm_head.weight.grad, plain.weight.grad, HEAD_TERMS)


def test_without_gradients_the_same_losses_are_found() -> None:
    lm_head, hidden, labels = make_case()
    with torch.no_grad():
        loss_sum, token_losses, _ = tiled_token_losses(lm_head, hidden, labels, num_tiles=3)
    assert not loss_sum.requires_grad
    assert_same_sums(token_losses, plain_losses(lm_head, hidden, labels)[0], HEAD_TERMS)


def test_the_head_is_an_ordinary_one_afterwards_and_its_hooks_ran_once() -> None:
    """ZeRO-3 gathers and releases the weight in hooks."""
    lm_head, hidden, labels = make_case()
    calls = []
    lm_head.register_forward_pre_hook(lambda *_: calls.append("before"))
    lm_head.register_forward_hook(lambda *_: calls.append("after"))
    tiled_token_losses(lm_head, hidden, labels, num_tiles=5)[0].backward()
    assert calls == ["before", "after"]
    assert lm_head(hidden).shape == (BATCH, LENGTH, VOCABULARY)


def test_bf16_is_as_near_to_fp32_as_the_plain_loss_is() -> None:
    """Many tiles, and a division by a number that bf16 does not have.

    A tile's part of a gradient is rounded to bf16, and their sum once more: two errors of either sign in place of one.
    """
    lm_head, hidden, labels = make_case(torch.bfloat16)
    exact_head, exact_hidden = copy.deepcopy(lm_head).float(), hidden.detach().float().requires_grad_()
    exact = gradients(plain_losses(exact_head, exact_hidden, labels)[0].sum() / 1003, exact_head, exact_hidden)
    plain = gradients(plain_losses(lm_head, hidden, labels)[0].sum() / 1003, lm_head, hidden)
    loss_sum, token_losses, _ = tiled_token_losses(lm_head, hidden, labels, num_tiles=11)
    assert token_losses.dtype == loss_sum.dtype == torch.float32
    for ours, theirs, truth in zip(gradients(loss_sum / 1003, lm_head, hidden), plain, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - truth).norm() <= 2**0.5 * (theirs.float() - truth).norm()


class LargestTensor(TorchDispatchMode):
    """Sees every tensor that is made."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.num_elements = max([self.num_elements, *(tensor.numel() for tensor in tensors)])
        return output


@pytest.mark.parametrize(("num_tiles", "largest"), [(1, 400 * VOCABULARY), (10, 40 * VOCABULARY)])
def test_the_logits_of_a_tile_are_the_largest_tensor(num_tiles: int, largest: int) -> None:
    lm_head = nn.Linear(4, VOCABULARY, bias=False)
    hidden = torch.randn(1, 400, 4, requires_grad=True)
    with LargestTensor() as seen:
        tiled_token_losses(lm_head, hidden, torch.zeros(1, 400).long(), num_tiles=num_tiles)[0].backward()
    assert seen.num_elements == largest


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape))


@pytest.mark.parametrize("num_tiles", [1, 3, 4, 100])
@pytest.mark.parametrize("with_activation_checkpointing", [False, True])
def test_mlps_in_tiles_compute_the_same(num_tiles: int, with_activation_checkpointing: bool) -> None:
    plain = tiny_llama()
    tiled = copy.deepcopy(plain)
    tile_layers(tiled, num_tiles=num_tiles)
    if with_activation_checkpointing:
        tiled.activation_checkpointing_enable()
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))
    losses = [model.train()(input_ids=ids, labels=ids).loss for model in (plain, tiled)]
    num_terms = 2 * path_length(plain.config, LENGTH) + BATCH * LENGTH
    assert_same_sums(losses[1], losses[0], num_terms)
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(tiled.parameters(), plain.parameters(), strict=True):
        assert_same_sums(ours.grad, theirs.grad, num_terms)


def test_only_the_given_model_is_tiled() -> None:
    tiled, other = tiny_llama(), tiny_llama()
    tile_layers(tiled, num_tiles=2)
    for name in ("layers.0.mlp", "layers.1.input_layernorm", "norm"):
        assert "forward" in vars(tiled.model.get_submodule(name))
        assert "forward" not in vars(other.model.get_submodule(name))


def test_many_tiles_in_bf16_are_as_near_to_fp32_as_none() -> None:
    """Gradients of a weight are added up over the tiles in fp32, and rounded once more than without tiles."""
    exact = tiny_llama()
    plain, tiled = (copy.deepcopy(exact).bfloat16() for _ in range(2))
    tile_layers(tiled, num_tiles=200)
    ids = torch.randint(VOCABULARY, (BATCH, 200))
    for model in (exact, plain, tiled):
        model(input_ids=ids, labels=ids).loss.backward()
    names = [name for name, _ in exact.named_parameters() if "mlp" in name or "norm" in name]
    errors = {
        model: sum((model.get_parameter(name).grad - exact.get_parameter(name).grad).norm() for name in names)
        for model in (plain, tiled)
    }
    assert errors[tiled] <= 2**0.5 * errors[plain]
