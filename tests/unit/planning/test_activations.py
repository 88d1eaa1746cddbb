"""The formulas agree with what autograd saves, and with the peak of a real step."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.planning.activations import activations, layer_bytes
from pretraining.planning.layout import TrainingLayout
from pretraining.training.model.compile import compile_layers
from pretraining.training.model.fp8 import convert_to_fp8
from pretraining.training.model.loss import token_losses
from pretraining.training.model.tiling import tile_layers, tile_loss
from tests.conftest import needs_compiler
from tests.unit.planning.layouts import layout_of

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MIDDLE = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6, "num_attention_heads": 8}
WIDE = {**MIDDLE, "hidden_size": 256, "intermediate_size": 688}  # for a vocabulary that does not dwarf the layers
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def prepared(size: dict, *, blocks: int = 2, length: int = 128, vocabulary: int = 500, **fields) -> TrainingLayout:
    config = LlamaConfig(**size, num_key_value_heads=2, vocab_size=vocabulary, use_cache=False, pad_token_id=None)
    plain = {"shape": config, "micro_batch_blocks": blocks, "block_length": length}
    return replace(layout_of("llama2_7b"), **plain, **fields)


def model_of(layout: TrainingLayout) -> LlamaForCausalLM:
    model = LlamaForCausalLM._from_config(
        layout.shape, attn_implementation=layout.attention, dtype=DTYPES[layout.precision]
    )
    if layout.checkpoint_every is not None:
        model.activation_checkpointing_enable(every_n_layers=layout.checkpoint_every)
    if layout.loss_tiles is not None:
        tile_loss(model, num_tiles=layout.loss_tiles)
    if layout.mlp_tiles is not None:
        tile_layers(model, num_tiles=layout.mlp_tiles)
    if layout.computes_in_fp8:
        convert_to_fp8(model)
    if layout.compiles_layers:
        compile_layers(model)
    return model.train()


def loss_of(model: LlamaForCausalLM, layout: TrainingLayout) -> torch.Tensor:
    ids = torch.randint(0, layout.shape.vocab_size, (layout.micro_batch_blocks, layout.block_length))
    labels = {"labels": ids} if layout.loss_tiles is not None else {}
    return token_losses(model(input_ids=ids, **labels), ids).loss_sum


@contextmanager
def saved_storages(model: LlamaForCausalLM) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Storages that autograd saves, each once, and none of a weight."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("size", [TINY, MIDDLE], ids=["tiny", "middle"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("how", [{}, {"checkpoint_every": 1}, {"checkpoint_every": 2}, {"attention": "eager"}], ids=str)
@pytest.mark.guarantee("Planned activations are within 2 % of what autograd keeps, by checkpointing policy.")
def test_what_autograd_saves(size: dict, precision: str, how: dict) -> None:
    layout = prepared(size, precision=precision, **how)
    model = model_of(layout)
    with saved_storages(model) as found:
        loss = loss_of(model, layout)
    saved = sum(storage.nbytes() for storage in found.values())
    log_probabilities = 4 * layout.num_tokens * layout.shape.vocab_size
    planned = activations(layout).kept + log_probabilities
    assert planned == pytest.approx(saved, rel=0.02), (planned, saved)
    assert loss.requires_grad


def assert_compiled_layers_keep_what_is_planned(layout: TrainingLayout) -> None:
    model = model_of(layout)
    loss_of(model, layout)  # compiles
    with saved_storages(model) as found:
        loss_of(model, layout)
    planned = activations(layout).kept + 4 * layout.num_tokens * layout.shape.vocab_size
    assert planned == pytest.approx(sum(storage.nbytes() for storage in found.values()), rel=0.05)


PARTITIONED = "aot_eager_decomp_partition"  # of the compiler only what decides what is kept


@pytest.mark.parametrize(
    "fields",  # the second is long: test_what_autograd_saves has every precision and way of checkpointing
    [{"precision": "bf16"}, pytest.param({"precision": "fp32", "checkpoint_every": 2}, marks=pytest.mark.long)],
    ids=str,
)
@pytest.mark.parametrize(
    "backend",  # that of runs is long: the other one keeps the same
    [PARTITIONED, pytest.param("inductor", marks=[needs_compiler, pytest.mark.long])],
)
@pytest.mark.guarantee("With compiled layers, planned activations are within 5 % of what autograd keeps.")
def test_what_autograd_saves_with_compiled_layers(backend: str, fields: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    layout = prepared(MIDDLE, compiles_layers=True, **fields)
    assert_compiled_layers_keep_what_is_planned(layout)


@pytest.mark.parametrize(
    "fields", [{"precision": "bf16"}, {"precision": "fp32", "checkpoint_every": 2}, {"precision": "bf16", "wide": True}]
)
def test_what_autograd_saves_with_layers_in_fp8(fields: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler's partitioner alone, which decides what is kept: emulated kernels take minutes to compile."""
    pytest.importorskip("torchao", reason="torchao is not installed (pip install -c requirements-extras.txt torchao)")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=PARTITIONED))
    size = {**MIDDLE, **({"head_dim": 64} if fields.pop("wide", False) else {})}
    layout = prepared(size, compiles_layers=True, computes_in_fp8=True, **fields)
    assert_compiled_layers_keep_what_is_planned(layout)
    assert layer_bytes(layout) < 0.8 * layer_bytes(replace(layout, computes_in_fp8=False))


@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.guarantee("With tiles, planned activations are within 2 % of what autograd keeps.")
def test_what_autograd_saves_with_tiles(every: int | None) -> None:
    layout = prepared(MIDDLE, precision="bf16", mlp_tiles=2, loss_tiles=4, checkpoint_every=every)
    model = model_of(layout)
    with saved_storages(model) as found:
        loss_of(model, layout)
    shape = layout.shape
    row_gradients, weight_gradient = 2 * layout.num_tokens * shape.hidden_size, 4 * shape.vocab_size * shape.hidden_size
    planned = activations(layout).kept + row_gradients + weight_gradient
    assert planned == pytest.approx(sum(storage.nbytes() for storage in found.values()), rel=0.02)


class AliveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations return, as long as they are alive, each storage once.

    What a kernel takes for itself is not among them, since that is another thing on each processor: where oneDNN has to
    emulate bf16 it computes a product in fp32 first, 12 % of the peak of a middle model.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._seen = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for storage in {leaf.untyped_storage() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)}:
            if storage not in self._seen:
                self._seen[storage] = True
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        if func is torch.ops.aten.add_.Tensor and args[0].dtype != args[1].dtype:  # which is cast within
            self.most = max(self.most, self.alive + args[1].numel() * args[0].element_size())
        return output

    def _change(self, num_bytes: int) -> None:
        self.alive += num_bytes
        self.most = max(self.most, self.alive)


def max_alive(layout: TrainingLayout) -> int:
    """Bytes that are alive at once, weights aside, in forward and backward of one micro step."""
    model = model_of(layout)
    for parameter in model.parameters():  # ZeRO takes each gradient away as it comes
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with AliveBytes([*model.parameters(), *model.buffers()]) as bytes_:
        loss_of(model, layout).backward()
    return bytes_.most


# Some are long: each precision, way of checkpointing, kind of attention and of tiles is in another one.
@pytest.mark.parametrize(
    ("precision", "vocabulary", "how"),
    [
        ("bf16", 4000, {}),
        ("bf16", 260, {"checkpoint_every": 1}),
        pytest.param("fp32", 260, {"checkpoint_every": 1}, marks=pytest.mark.long),
        pytest.param("bf16", 4000, {"checkpoint_every": 1, "loss_tiles": 4}, marks=pytest.mark.long),
        ("bf16", 260, {"checkpoint_every": 1, "loss_tiles": 8, "mlp_tiles": 8}),
        pytest.param("bf16", 260, {"checkpoint_every": 2}, marks=pytest.mark.long),
        ("bf16", 260, {"checkpoint_every": 5}),
        pytest.param("bf16", 260, {"attention": "eager", "length": 512}, marks=pytest.mark.long),
        pytest.param("bf16", 260, {"attention": "eager", "length": 512, "checkpoint_every": 1}, marks=pytest.mark.long),
        ("fp32", 260, {"attention": "eager", "length": 256, "checkpoint_every": 1, "mlp_tiles": 8}),
        ("fp32", 4000, {"checkpoint_every": 1, "loss_tiles": 2}),
    ],
)
@pytest.mark.guarantee(
    "The planned peak of activations is within 10 % of a real step's, by checkpointing policy and tiles."
)
def test_the_most_that_is_alive(precision: str, vocabulary: int, how: dict) -> None:
    size = WIDE if vocabulary > 1000 else MIDDLE
    layout = prepared(size, **{"length": 256, "vocabulary": vocabulary, "precision": precision, **how})
    planned = activations(layout)
    most = planned.kept + max(planned.at_loss, planned.in_layer)
    assert most == pytest.approx(max_alive(layout), rel=0.1)


def test_the_7b_keeps_23_gib_a_block_and_1_with_checkpoints() -> None:
    layout = layout_of("llama2_7b")
    assert layer_bytes(layout) * 32 / 2**30 == pytest.approx(22.8, abs=0.1)
    assert activations(replace(layout, checkpoint_every=1)).kept / 2**30 == pytest.approx(1.1, abs=0.1)


def test_documents_by_their_bounds_take_no_mask() -> None:
    masked = prepared(TINY, masks_documents=True, precision="bf16")
    packed = replace(masked, attention="documents")
    mask = masked.num_tokens * masked.block_length * (1 + 2)  # bool, and in the precision of the scores
    assert activations(masked).kept - activations(packed).kept == mask
    assert activations(replace(packed, attention="flash_attention_2")) == activations(packed)
