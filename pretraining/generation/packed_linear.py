"""Linear layers on a CPU with their weights in oneDNN's blocked layout.

Matrix multiplications with few vectors, as in generation, are then 1.2 to 6 times as fast as with torch's own layer,
which does not reorder fp32 weights and reorders bf16 weights in every call. With fp32 weights of 512 x 512 or more, one
vector took 0.3 to 1.5 times as long (longest with the smallest weight), and 2 to 4,096 vectors at most 1.03 times
(torch 2.13, AMD EPYC, 2 cores; docs/benchmarks/generate.md).
"""

import ctypes

import torch
from torch import nn
from transformers import PreTrainedModel

from pretraining.system.host import bf16_instruction

MIN_FP32_SIZE = 1 << 18  # 512 x 512: a smaller fp32 multiplication takes 10 us, and the oneDNN call alone 30


class PackedLinear(nn.Module):
    """A linear layer that keeps only the packed weight, without gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # The second argument, the number of vectors, does not change the layout.
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs [..., out] of inputs [..., in]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


def pack_linear_layers(model: PreTrainedModel) -> None:
    """Replace the linear layers that benefit, one at a time, so that only one weight exists twice."""
    for path in [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]:
        pack_linear_layer(model, path)


def pack_linear_layer(model: PreTrainedModel, path: str) -> None:
    """Replace the module at `path` if it is a linear layer that benefits.

    An output layer tied to the embedding is kept, because the embedding would need the unpacked weight as well.
    """
    module = model.get_submodule(path)
    is_untied = module is not model.lm_head or not model.config.tie_word_embeddings
    if isinstance(module, nn.Linear) and is_untied and _benefits(module.weight):
        model.set_submodule(path, PackedLinear(module))
        del module
        _return_freed_memory()


def _return_freed_memory() -> None:
    """Return freed memory to the system: glibc would keep up to 0.4 of the weights' bytes as holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _benefits(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bf16_instruction() is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and weight.numel() >= MIN_FP32_SIZE
