"""The attention of a run; within documents without a mask, by torch's flash kernels on a GPU or document by document.

sdpa with a mask of length x length computes the full square, and neither flash nor causal kernels take a mask.
`varlen_attn` (torch.nn.attention.varlen, in torch itself) takes the bounds of documents in one long row; it needs a
GPU of compute capability 8 and bf16 or fp16, and has no dropout. cuDNN would build a plan for each new length.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.planning.layout import DOCUMENTS, Attention, MachineSpec, TrainingLayout

MIN_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 256
MAX_CHOICE_LENGTH = 4096  # tokens; longer blocks have the same kernel
# torch 2.11 has no heads of keys that several heads of queries share; versions before have other parameters.
HAS_FUNCTION = "window_size" in inspect.signature(varlen_attn).parameters
HAS_SHARED_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def choose_attention(
    arguments: PretrainArguments, config: LlamaConfig, precision: str, machine: MachineSpec
) -> Attention:
    """The attention of a run: `--attention_implementation`, or `DOCUMENTS` in place of sdpa with masked documents.

    That is on GPUs that have the kernels, and with sequence parallelism, whose blocks may be too long for a mask.
    """
    flags = arguments.model
    asked: Attention = flags.attention_implementation
    if asked != "sdpa" or not arguments.data.document_masking:
        return asked
    is_compiled = flags.compile_layers or arguments.trainer.get("torch_compile")  # again for each number of documents
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    fits = _fits_kernel(dtype, config.head_dim, config.attention_dropout) and _is_new_enough(machine)
    has_kernel = fits and not is_compiled
    return DOCUMENTS if has_kernel or flags.sequence_parallel_size > 1 else asked


def attention_kernel(layout: TrainingLayout, *, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The kernel that torch chooses for causal attention, and the version of cuDNN: other ones have another speed.

    None unless sdpa computes plain causal attention: another package may compute it, and masked documents decide in
    each micro step. `dtype` is that of the weights.
    """
    kernel = None
    if layout.attention == "sdpa" and not layout.masks_documents:
        length = min(layout.block_length, MAX_CHOICE_LENGTH)
        shape = (1, layout.shape.num_attention_heads, length, layout.shape.head_dim)
        query = torch.empty(shape, dtype=dtype, device=device, requires_grad=True)
        # Public functions only compute attention, and do not report the kernel (torch 2.13).
        kernel = SDPBackend(torch._fused_sdp_choice(query, query, query, is_causal=True)).name.lower()
    return {"kernel": kernel, "cudnn": torch.backends.cudnn.version()}


def use_document_attention(model: PreTrainedModel) -> None:
    """Have this model compute attention within documents; its forward then needs their bounds."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # for documents one by one
    ALL_ATTENTION_FUNCTIONS[DOCUMENTS] = attend_within_documents
    model.config._attn_implementation = DOCUMENTS


def attend_within_documents(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention [rows, length, heads, head_dim] of states [rows, heads, length, head_dim] in each document.

    `cu_seq_lens_q`, int32 [documents + 1], are the bounds of the documents in the rows, one row after another;
    `max_length_q` is at least the length of the longest. They have no default: documents would see each other without.
    """
    shape, scaling, dropout = query.transpose(1, 2).shape, options["scaling"], options["dropout"]
    if not _uses_kernel(query, dropout):
        output = _attend_one_by_one((query, key, value), cu_seq_lens_q, scaling=scaling, dropout=dropout)
        return output.view(shape), None
    repeats = query.shape[1] // key.shape[1]
    shared: dict[str, Any] = {"enable_gqa": True} if repeats > 1 else {}
    if shared and not HAS_SHARED_HEADS:
        key, value, shared = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), {}
    output = varlen_attn(
        *(states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # causal
        **shared,
    )
    return output.view(shape), None


def _uses_kernel(query: Tensor, dropout: float) -> bool:
    is_new_enough = query.is_cuda and torch.cuda.get_device_capability(query.device) >= MIN_CAPABILITY
    return is_new_enough and _fits_kernel(query.dtype, query.shape[-1], dropout)


def _is_new_enough(machine: MachineSpec) -> bool:
    """Whether its GPUs have the kernel: listed kinds with bf16 do; GPUs of another kind are those of this machine."""
    if machine.gpu_type is None:
        return machine.has_gpu and torch.cuda.get_device_capability() >= MIN_CAPABILITY
    return machine.gpu_type.has_bf16


def _fits_kernel(dtype: torch.dtype, head_dim: int, dropout: float) -> bool:
    """Whether torch's kernel computes this, on a GPU that is new enough."""
    has_size = head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM
    return HAS_FUNCTION and has_size and dtype.itemsize == 2 and dropout == 0


def _attend_one_by_one(
    heads: tuple[Tensor, Tensor, Tensor], bounds: Tensor, *, scaling: float | None, dropout: float
) -> Tensor:
    """Attention [tokens, heads, head_dim], document by document; on a GPU the bounds are read in each layer."""
    lengths = bounds.diff().tolist()
    rows = [states.transpose(0, 1).flatten(1, 2)[None] for states in heads]
    is_shared = heads[0].shape[1] != heads[1].shape[1]
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=is_shared)
        for q, k, v in zip(*(states.split(lengths, dim=2) for states in rows), strict=True)
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1).contiguous()
