"""Attention within documents is that of the mask, and torch's kernel is called with what that takes."""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.planning.layout import DOCUMENTS, MachineSpec
from pretraining.system.gpus import find_gpu_type
from pretraining.training.data.batch import Batch, collate_targets, model_inputs
from pretraining.training.model import document_attention
from pretraining.training.model.document_attention import attention_kernel, choose_attention, use_document_attention
from tests.unit.planning.layouts import layout_of

STARTS = ([0, 1, 9, 20], [0], [0, 23])  # of 24 tokens: documents of one token, and one that fills its block
LENGTH, VOCABULARY = 24, 50
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    items = []
    for starts in STARTS:
        ids, begin = torch.randint(VOCABULARY, (LENGTH,), generator=generator), torch.zeros(LENGTH, dtype=torch.int64)
        begin[starts] = torch.tensor(starts)
        items.append({"input_ids": ids, "labels": ids, "position_ids": torch.arange(LENGTH) - begin.cummax(0).values})
    return collate_targets(items)


def make_model(**fields: Any) -> LlamaForCausalLM:
    """In fp64, so that only sums of another order differ."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=VOCABULARY, use_cache=False, **fields)).double()


def logits_and_gradients(model: LlamaForCausalLM, batch: Batch, *, in_one_row: bool) -> list[Tensor]:
    logits = model(**model_inputs(batch, in_one_row=in_one_row)).logits.view(len(STARTS), LENGTH, VOCABULARY)
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters())]


def reference_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """What torch's function documents, on any device; rejects what its kernel rejects."""
    assert return_aux is seqused_k is block_table is num_splits is None
    assert cu_seq_k is not None
    for states in (query, key, value):
        assert states.dim() == 3
        assert states.stride(-1) == 1
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.is_contiguous()
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert window_size == (-1, 0), "causal"
    lengths_q, lengths_k = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert sum(lengths_q) == len(query)
    assert max(lengths_q) <= max_q
    assert max(lengths_k) <= max_k
    parts = zip(query.split(lengths_q), key.split(lengths_k), value.split(lengths_k), strict=True)
    outputs = [
        scaled_dot_product_attention(
            *(states.transpose(0, 1)[None] for states in part), is_causal=True, scale=scale, enable_gqa=enable_gqa
        )[0].transpose(0, 1)
        for part in parts
    ]
    return torch.cat(outputs)


def test_the_reference_has_the_parameters_of_torchs_function() -> None:
    ours, theirs = (inspect.signature(function).parameters for function in (reference_varlen_attn, varlen_attn))
    assert [(one.name, one.kind, one.default) for one in ours.values()] == [
        (one.name, one.kind, one.default) for one in theirs.values()
    ]
    assert document_attention.HAS_FUNCTION


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@pytest.mark.parametrize("has_kernel", [False, True], ids=["one by one", "kernel"])
@pytest.mark.guarantee(
    "Document masking by flash kernels has the logits and gradients of the mask; no mask is made, nothing is read back."
)
def test_documents_in_one_row_are_those_of_the_mask(
    num_key_value_heads: int, has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself: tests/gpu/test_kernels.py."""
    batch = make_batch()
    masked = logits_and_gradients(make_model(num_key_value_heads=num_key_value_heads), batch, in_one_row=False)
    calls: list[tuple[Any, ...]] = []

    def kernel(*args: Any, **options: Any) -> Tensor:
        calls.append(args)
        return reference_varlen_attn(*args, **options)

    monkeypatch.setattr(document_attention, "varlen_attn", kernel)
    monkeypatch.setattr(document_attention, "_uses_kernel", lambda *_: has_kernel)
    model = make_model(num_key_value_heads=num_key_value_heads)
    use_document_attention(model)
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices", lambda _: pytest.fail("makes a mask")
    )
    packed = logits_and_gradients(model, batch, in_one_row=True)
    for ours, theirs in zip(packed, masked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * theirs.abs().max().item())
    assert len(calls) == (model.config.num_hidden_layers if has_kernel else 0)
    for query, key, _, bounds, same_bounds, max_q, max_k in calls:
        assert query.shape == (len(STARTS) * LENGTH, 4, 8)
        assert key.shape == (len(STARTS) * LENGTH, num_key_value_heads, 8)
        assert bounds is same_bounds
        assert bounds.tolist() == [0, 1, 9, 20, 24, 48, 71, 72]
        assert max_q == max_k == LENGTH


def test_without_bounds_nothing_is_computed() -> None:
    """Documents would see each other."""
    model = make_model()
    use_document_attention(model)
    with pytest.raises(TypeError, match="cu_seq_lens_q"):
        model(**model_inputs(make_batch(), in_one_row=False))


def arguments(*flags: str) -> PretrainArguments:
    return parse_pretrain_arguments("", ["--model", "quickstart", *flags])


def machine(kind: str | None) -> MachineSpec:
    """One GPU of a kind, or a CPU; what this machine has must not matter."""
    if kind is None:
        return MachineSpec("CPU", 1, 1, gpu_bytes=None, gpu_type=None, host_bytes=None)
    gpu_type = find_gpu_type(kind)
    return MachineSpec(kind, 1, 1, gpu_bytes=gpu_type.memory_bytes, gpu_type=gpu_type, host_bytes=None)


def test_which_attention_a_run_has() -> None:
    config, masking = LlamaConfig(**SHAPE), "--document_masking"
    assert choose_attention(arguments(masking), config, "bf16", machine("h200")) == DOCUMENTS
    assert choose_attention(arguments(masking), config, "fp16", machine("h200")) == DOCUMENTS
    assert choose_attention(arguments(masking), config, "fp32", machine("h200")) == "sdpa"
    assert choose_attention(arguments(masking), config, "bf16", machine(None)) == "sdpa"
    assert choose_attention(arguments(masking), config, "fp16", machine("v100")) == "sdpa", "has no such kernel"
    assert choose_attention(arguments(), config, "bf16", machine("h200")) == "sdpa"
    for odd in (LlamaConfig(**SHAPE, attention_dropout=0.1), LlamaConfig(**{**SHAPE, "head_dim": 20})):
        assert choose_attention(arguments(masking), odd, "bf16", machine("h200")) == "sdpa"
    compiled = arguments(masking)
    compiled = replace(compiled, model=replace(compiled.model, compile_layers=True))
    assert choose_attention(compiled, config, "bf16", machine("h200")) == "sdpa"
    shared = arguments(masking, "--sequence_parallel_size", "2")
    assert choose_attention(shared, config, "fp32", machine(None)) == DOCUMENTS
    flash = arguments(masking)
    flash = replace(flash, model=replace(flash.model, attention_implementation="flash_attention_2"))
    assert choose_attention(flash, config, "bf16", machine("h200")) == "flash_attention_2"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "sdpa"), ((8, 0), DOCUMENTS), ((12, 0), DOCUMENTS)])
def test_a_gpu_that_is_not_listed_is_asked_for_its_capability(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    flags, unlisted = arguments("--document_masking"), replace(machine("h200"), gpu_type=None)
    assert choose_attention(flags, LlamaConfig(**SHAPE), "fp16", unlisted) == expected
    listed = {kind: choose_attention(flags, LlamaConfig(**SHAPE), "fp16", machine(kind)) for kind in ("h200", "v100")}
    assert listed == {"h200": DOCUMENTS, "v100": "sdpa"}, "by their kind"


def test_the_kernel_is_known_where_attention_is_causal_and_computed_by_sdpa() -> None:
    layout, here = layout_of("llama2_7b"), {"dtype": torch.float32, "device": torch.device("cpu")}
    assert attention_kernel(layout, **here)["kernel"] in ("math", "flash_attention")
    for others in ({"masks_documents": True}, {"attention": "eager"}, {"attention": "documents"}):
        assert attention_kernel(replace(layout, **others), **here)["kernel"] is None
