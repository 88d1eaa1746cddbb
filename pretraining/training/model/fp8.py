"""Compute the matrix products of the decoder layers in fp8 with torchao, scaled per tensor by its largest value.

Inputs and weights are cast to e4m3, gradients to e5m2, with a new scale for each product. Weights are stored as before,
so ZeRO-3, checkpoints and exports do not change; embeddings, norms, attention and lm_head compute as before. Only
training steps use fp8: evaluation, samples and the check of an export use the precision of the exported weights.
"""

from types import MethodType

import torch
from transformers import PreTrainedModel

from pretraining.errors import raise_problems
from pretraining.planning.layout import TrainingLayout
from pretraining.training.distributed.process_group import has_gpu

MIN_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
DIM_MULTIPLE = 16  # torch._scaled_mm needs rows of a multiple of 16 bytes; in backward, tokens form a row


def convert_to_fp8(model: PreTrainedModel) -> None:
    """Convert the layers' linears; without a GPU they multiply the same casts in fp32.

    Call it before the layers are compiled. They must be compiled: otherwise a converted linear keeps its gathered
    weight for backward, and ZeRO-3 can free none.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    def forward(linear: Float8Linear, hidden: torch.Tensor) -> torch.Tensor:
        return (Float8Linear if linear.training else torch.nn.Linear).forward(linear, hidden)

    convert_to_float8_training(model.model.layers, config=Float8LinearConfig(emulate=not has_gpu()))
    for module in model.model.layers.modules():
        if isinstance(module, Float8Linear):
            module.forward = MethodType(forward, module)


def check_fp8(layout: TrainingLayout) -> None:
    """Check that the GPU and the model support fp8.

    Raises:
        UserError: with all problems at once.
    """
    problems = unsupported_sizes(layout)
    capability = torch.cuda.get_device_capability() if has_gpu() else MIN_CAPABILITY
    if capability < MIN_CAPABILITY:
        problems.append(
            f"--fp8: needs a GPU of compute capability 8.9 or newer (Ada, Hopper), this one has "
            f"{capability[0]}.{capability[1]}; remove the flag"
        )
    raise_problems(problems)


def unsupported_sizes(layout: TrainingLayout) -> list[str]:
    """The sizes of a model or micro step that fp8 does not support on any machine."""
    shape = layout.shape
    widths = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads * head_dim": shape.num_attention_heads * shape.head_dim,
        "num_key_value_heads * head_dim": shape.num_key_value_heads * shape.head_dim,
    }
    problems = [
        f"--fp8: needs multiples of {DIM_MULTIPLE}, but {name} is {width:,}; use another model, or remove the flag"
        for name, width in widths.items()
        if width % DIM_MULTIPLE
    ]
    if layout.num_tokens % DIM_MULTIPLE:
        problems.append(
            f"--fp8: needs micro steps of a multiple of {DIM_MULTIPLE} tokens, but one has {layout.num_tokens:,}; "
            "use another --per_device_train_batch_size or block length, or remove the flag"
        )
    return problems
