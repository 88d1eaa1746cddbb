"""Linear layers on a CPU with their weights in the order in which oneDNN reads them.

Many short products, which growing texts are made of, are then 1.2 to 6 times as fast as by torch's own layer, which
reads a weight as it stands in fp32 and puts it into that order each time in bf16. With weights from 512 x 512 on, one
vector alone in fp32 took 0.3 to 1.5 times as long, longest with the smallest, and nothing else of up to 4,096 vectors
more than 1.03 times (torch 2.13, AMD EPYC, 2 cores; docs/benchmarks/generate.md).
"""

import ctypes

import torch
from torch import nn
from transformers import PreTrainedModel

from pretraining.system.processor import bf16_instruction

LEAST_FP32_SIZE = 1 << 18  # of a smaller weight (512 x 512) one product in fp32 takes 10 us, and oneDNN's call 30


class PackedLinear(nn.Module):
    """What a linear layer computes; its weight, which takes no gradient, is kept in no other form."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # The form does not depend on the number of vectors, which the second argument could tell.
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs [..., out] of inputs [..., in]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


def pack_linear_layers(model: PreTrainedModel) -> None:
    """Replace the linear layers that gain by it, one after the other: one weight at a time is there twice."""
    for path in [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]:
        pack_linear_layer(model, path)


def pack_linear_layer(model: PreTrainedModel, path: str) -> None:
    """Replace the module at `path`, if it is a linear layer that gains by it.

    A head whose weight is that of the embedding stays, since that would be there beside its packed form.
    """
    module = model.get_submodule(path)
    is_alone = module is not model.lm_head or not model.config.tie_word_embeddings
    if isinstance(module, nn.Linear) and is_alone and _gains(module.weight):
        model.set_submodule(path, PackedLinear(module))
        del module
        _return_freed_memory()


def _return_freed_memory() -> None:
    """What glibc would keep as holes between weights, up to 0.4 of what they take."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def _gains(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bf16_instruction() is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and weight.numel() >= LEAST_FP32_SIZE
