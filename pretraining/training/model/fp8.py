"""The products of the decoder layers in fp8, by torchao: 8 bits a number, scaled by the largest of its tensor.

Inputs and weights become e4m3, gradients e5m2, each with a scale of its own, found anew for each product. Weights stay
what and where they are, so ZeRO-3, checkpoints and exports know nothing of it; embeddings, norms, attention and lm_head
compute as before. Only a training step is in fp8: evaluation, samples and the check of an export are to say what the
exported model does, which computes in the precision of its weights.
"""

from types import MethodType

import torch
from transformers import PreTrainedModel

from pretraining.errors import UserError
from pretraining.planning.layout import TrainingLayout
from pretraining.training.distributed.process_group import has_gpu

LOWEST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
MULTIPLE = 16  # torch._scaled_mm wants rows of whole 16 bytes; in backward the tokens make a row


def convert_to_fp8(model: PreTrainedModel) -> None:
    """Convert the layers' linears; without a GPU they multiply the same casts in fp32.

    Before the layers are compiled, and they must be: as it stands, a converted linear keeps its gathered weight for
    backward, so that ZeRO-3 could free none.
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
    """Refuse a GPU or a model that cannot compute in fp8.

    Raises:
        UserError: with all problems at once.
    """
    problems = unsupported_sizes(layout)
    capability = torch.cuda.get_device_capability() if has_gpu() else LOWEST_CAPABILITY
    if capability < LOWEST_CAPABILITY:
        problems.append(
            f"--fp8: needs a GPU of compute capability 8.9 or newer (Ada, Hopper), this one has "
            f"{capability[0]}.{capability[1]}; remove the flag"
        )
    if problems:
        raise UserError(*problems)


def unsupported_sizes(layout: TrainingLayout) -> list[str]:
    """Why no machine can."""
    shape = layout.shape
    widths = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads * head_dim": shape.num_attention_heads * shape.head_dim,
        "num_key_value_heads * head_dim": shape.num_key_value_heads * shape.head_dim,
    }
    problems = [
        f"--fp8: needs multiples of {MULTIPLE}, and {name} is {width:,}; give another, or leave it out"
        for name, width in widths.items()
        if width % MULTIPLE
    ]
    if layout.num_tokens % MULTIPLE:
        problems.append(
            f"--fp8: needs micro steps of a multiple of {MULTIPLE} tokens, and {layout.num_tokens:,} are in one; give "
            "another --per_device_train_batch_size or block length, or leave it out"
        )
    return problems
