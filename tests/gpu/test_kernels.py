"""On a GPU: the graphs of decode steps, and the kernel of documents, against the same without them."""

from collections.abc import Iterator

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.batching import Request, generate_batched
from pretraining.generation.decoder import LlamaDecoder
from pretraining.training.model import document_attention
from pretraining.training.model.document_attention import use_document_attention
from tests.rounding import BF16_ROUNDOFF
from tests.unit.generation.test_decoder import small_model
from tests.unit.training.model.test_document_attention import logits_and_gradients, make_batch, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

LENGTHS = (3, 40, 17, 9, 33, 1, 24)
MAX_NEW_TOKENS = 200  # with the prompts two lengths of keys


@pytest.fixture(autouse=True)
def _restore_cudnn() -> Iterator[None]:
    was_enabled = cudnn_sdp_enabled()
    enable_cudnn_sdp(False)
    yield
    enable_cudnn_sdp(was_enabled)


def generated(decoder: LlamaDecoder) -> dict[tuple[int, int], list[int]]:
    torch.manual_seed(1)
    requests = [Request("", torch.randint(0, 300, (n,)).tolist(), number, 0) for number, n in enumerate(LENGTHS)]
    arguments = GenerateArguments(max_new_tokens=MAX_NEW_TOKENS, repetition_penalty=1.0)
    sequences = generate_batched(
        decoder, requests, lambda one: "length" if len(one.ids) == MAX_NEW_TOKENS else "", arguments
    )
    return {one.request.key: one.ids for one in sequences}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.guarantee("On a GPU: graphs of decode steps give the same tokens.")
def test_graphs_of_decode_steps_give_the_same_tokens(dtype: torch.dtype) -> None:
    model = small_model(max_position_embeddings=256, num_key_value_heads=2).to("cuda", dtype)
    decoder = LlamaDecoder(model, num_rows=3, num_positions=240)
    found = generated(decoder)
    assert decoder._graphs is not None
    captured = decoder._graphs._graphs
    assert set(captured) == {(3, 128), (3, 256)}
    assert all(graph is not None for graph in captured.values())
    launched = LlamaDecoder(model, num_rows=3, num_positions=240)
    launched._graphs = None
    assert generated(launched) == found
    if dtype == torch.float32:  # bf16 rounds otherwise without padding
        assert generated(LlamaDecoder(model, num_rows=3, num_positions=240, multiple=1)) == found


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@pytest.mark.guarantee("On a GPU: the kernel of masked documents computes what the mask does.")
def test_the_kernel_of_documents_computes_what_the_mask_does(
    num_key_value_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """29 tensors are rounded to bf16 from a token to its logit, and as many on the way back."""
    batch = {name: values.cuda() for name, values in make_batch().items()}
    masked = make_model(num_key_value_heads=num_key_value_heads).to("cuda", torch.bfloat16)
    expected = logits_and_gradients(masked, batch, in_one_row=False)
    model = make_model(num_key_value_heads=num_key_value_heads).to("cuda", torch.bfloat16)
    use_document_attention(model)
    monkeypatch.setattr(document_attention, "_attend_one_by_one", lambda *_, **__: pytest.fail("not the kernel"))
    found = logits_and_gradients(model, batch, in_one_row=True)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        num_tensors = 58 if number else 29
        atol = num_tensors * BF16_ROUNDOFF * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    first = batch["input_ids"].clone()
    first[0, 1:9] = (first[0, 1:9] + 1) % 50  # the second document
    model.zero_grad()
    (other, *_) = logits_and_gradients(model, {**batch, "input_ids": first}, in_one_row=True)
    assert torch.equal(other[0, 9:], found[0][0, 9:])
    assert torch.equal(other[1:], found[0][1:])
    assert not torch.equal(other[0, 1:9], found[0][0, 1:9])
