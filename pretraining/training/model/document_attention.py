"""Attention within documents, without a mask: by torch's flash kernels on a GPU, or document by document.

sdpa with a mask of length x length computes the full square, and neither flash nor causal kernels take a mask.
`varlen_attn` (torch.nn.attention.varlen, in torch itself) takes the bounds of documents in one long row; it needs a
GPU of compute capability 8 and bf16 or fp16, and has no dropout. cuDNN would build a plan for each new length.
"""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.training.distributed.process_group import has_gpu

DOCUMENTS: Literal["documents"] = "documents"  # its name in transformers, which then makes no mask
MIN_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 256
# Of torch 2.13; earlier versions have a function of this name with other parameters.
HAS_FUNCTION = {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "documents"]


def choose_attention(arguments: PretrainArguments, config: LlamaConfig, precision: str, *, on_gpu: bool) -> Attention:
    """The attention of a run: `--attention_implementation`, or `DOCUMENTS` in place of sdpa with masked documents.

    That is on a GPU that has the kernels, and with sequence parallelism, whose blocks may be too long for a mask.
    """
    flags = arguments.model
    asked: Attention = flags.attention_implementation
    if asked != "sdpa" or not arguments.data.document_masking:
        return asked
    is_compiled = flags.compile_layers or arguments.trainer.get("torch_compile")  # again for each number of documents
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    has_kernel = on_gpu and not is_compiled and _fits_kernel(dtype, config.head_dim, config.attention_dropout)
    return DOCUMENTS if has_kernel or flags.sequence_parallel_size > 1 else asked


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
    `max_length_q` is no less than the longest of them. They have no default: documents would see each other without.
    """
    shape, scaling, dropout = query.transpose(1, 2).shape, options["scaling"], options["dropout"]
    if not _uses_kernel(query, dropout):
        output = _attend_one_by_one((query, key, value), cu_seq_lens_q, scaling=scaling, dropout=dropout)
        return output.view(shape), None
    output = varlen_attn(
        *(states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.view(shape), None


def _uses_kernel(query: Tensor, dropout: float) -> bool:
    return query.is_cuda and _fits_kernel(query.dtype, query.shape[-1], dropout)


def _fits_kernel(dtype: torch.dtype, head_dim: int, dropout: float) -> bool:
    """Whether torch's kernel computes this; a machine without a GPU is assumed to plan for a GPU that has it."""
    is_new_enough = not has_gpu() or torch.cuda.get_device_capability() >= MIN_CAPABILITY
    has_size = head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM
    return HAS_FUNCTION and is_new_enough and has_size and dtype.itemsize == 2 and dropout == 0


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
