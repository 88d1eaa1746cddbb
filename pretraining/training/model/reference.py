"""The losses of a parent model by transformers' own forward, one layer in memory at a time.

The layers of an empty LlamaForCausalLM read their weights when they are called and drop them after that, so a model of
any size runs on one process. Nothing of the training path is used: neither ZeRO-3 nor tiles, packed rows or fused
attention.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pretraining.runs.export.zero_shards import config_of_checkpoint
from pretraining.training.data.batch import collate_targets, model_inputs
from pretraining.training.data.dataset import Item
from pretraining.training.model.loss import token_losses
from pretraining.training.model.weights import EMBEDDING, HEAD, ParentWeights

ROPE_BASES = (1e4, 5e5, 1e6)  # of Llama 1 and 2, Llama 3, and Code Llama
MIN_BASE_GAIN = 0.03  # nats per token
MIN_BASE_ERRORS = 4  # standard errors: by chance once in 30,000 models


def config_by_transformers(folder: Path, vocab_size: int) -> LlamaConfig:
    """The config as other programs read it: `fields.py` reads config.json by itself."""
    has_own = (folder / "config.json").is_file()
    config = LlamaConfig.from_pretrained(folder) if has_own else config_of_checkpoint(folder)
    config.vocab_size, config.pad_token_id = vocab_size, None
    return config


def with_other_bases(config: LlamaConfig) -> list[LlamaConfig]:
    """Copies with the rotary bases of other published Llamas."""
    found = []
    for theta in ROPE_BASES:
        if theta != config.rope_parameters["rope_theta"]:
            other = copy.deepcopy(config)
            other.rope_parameters = {**config.rope_parameters, "rope_theta": theta}
            found.append(other)
    return found


def better_base(own: Sequence[torch.Tensor], other: Sequence[torch.Tensor], *, entropy: float) -> bool:
    """Whether a model clearly predicts better with another rotary base than with its own.

    Each has the losses of the tokens of the same blocks, fp32 [tokens]. A model that was trained with another base than
    its config names has a lower loss with the right one. Measured on blocks of 256 tokens: a model of 4 M parameters
    loses 0.04 nats or more on each of 32 blocks with a wrong one, after 1.8 M tokens. But on text that it does not know
    (another language, code), or hardly trained, a wrong base can be better by chance, by 0.03 nats on every third
    block. So the gain must be above its standard error several times, by tokens and by blocks, and the better loss
    must be below the entropy of the tokens without context, in nats.
    """
    gains = [first - second for first, second in zip(own, other, strict=True)]
    gain = torch.cat(gains).mean().item()
    errors = [_standard_error(torch.cat(gains))]
    if len(gains) > 1:
        errors.append(_standard_error(torch.stack([of_block.mean() for of_block in gains])))
    is_clear = gain > max(MIN_BASE_GAIN, MIN_BASE_ERRORS * max(errors))
    return is_clear and torch.cat(list(other)).mean().item() < entropy


def _standard_error(values: torch.Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item()


class _RotaryRows(nn.Module):
    """Rotary positions, for each row of a batch those of another config."""

    def __init__(self, configs: Sequence[LlamaConfig], device: torch.device) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(LlamaRotaryEmbedding(config).to(device) for config in configs)

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of each position, [rows, tokens, head_dim]."""
        pairs = [
            embedding(hidden[row : row + 1], position_ids[row % len(position_ids)][None])
            for row, embedding in enumerate(self.embeddings)
        ]
        cosines, sines = zip(*pairs, strict=True)
        return torch.cat(cosines), torch.cat(sines)


@torch.no_grad()
def parent_losses(
    weights: ParentWeights,
    items: Sequence[Item],
    configs: Sequence[LlamaConfig],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> list[list[torch.Tensor]]:
    """The losses of the predicted tokens of each block, fp32 [tokens], in nats: once per config.

    The blocks have one length. The configs differ in their rotary positions only: the weights are read once for all.

    Raises:
        UserError: when a weight cannot be read.
    """
    model = _streamed_model(weights, [one for one in configs for _ in items], dtype=dtype, device=device)
    batch = {name: values.to(device) for name, values in collate_targets([*items] * len(configs)).items()}
    hidden = model.model(**model_inputs(batch, in_one_row=False)).last_hidden_state
    model.lm_head.forward = partial(_losses_row_by_row, model.lm_head.forward, batch["labels"])
    found = model.lm_head(hidden)  # its weights are read once for all rows, too
    return [found[first : first + len(items)] for first in range(0, len(found), len(items))]


def _losses_row_by_row(
    forward: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor, hidden: torch.Tensor
) -> list[torch.Tensor]:
    """The losses of each row of [rows, tokens, width], on the CPU; logits of one row are in memory."""
    found = []
    for row in range(len(hidden)):
        tokens = token_losses(CausalLMOutput(logits=forward(hidden[row : row + 1])), targets[row : row + 1])
        found.append(tokens.losses[tokens.is_predicted].cpu())
    return found


def needed_bytes(config: LlamaConfig, *, num_tokens: int, dtype: torch.dtype) -> int:
    """The memory that `parent_losses` needs at a time: two large tensors of weights, and a row's scores and logits.

    Scores and logits are there in their dtype and twice in fp32, for the softmax and its input.
    """
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * width * width + 3 * width * inner
    scores, logits = config.num_attention_heads * num_tokens**2, config.vocab_size * num_tokens
    return (layer + config.vocab_size * width) * dtype.itemsize + (scores + logits) * (dtype.itemsize + 8)


def _streamed_model(
    weights: ParentWeights, row_configs: Sequence[LlamaConfig], *, dtype: torch.dtype, device: torch.device
) -> LlamaForCausalLM:
    config = LlamaConfig.from_dict({**row_configs[0].to_dict(), "use_cache": False, "attn_implementation": "eager"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    model.model.rotary_emb = _RotaryRows(row_configs, device)

    def read(name: str) -> nn.Parameter:
        stored = EMBEDDING if name == HEAD and config.tie_word_embeddings else name
        return nn.Parameter(weights.read(stored).to(device, dtype), requires_grad=False)

    layers = {f"model.layers.{number}": layer for number, layer in enumerate(model.model.layers)}
    others = {"model.embed_tokens": model.model.embed_tokens, "model.norm": model.model.norm, "lm_head": model.lm_head}
    for prefix, module in {**layers, **others}.items():
        module.register_forward_pre_hook(_reader(prefix, read))
        module.register_forward_hook(_drop)
    for layer in layers.values():
        layer.forward = partial(_row_by_row, layer.forward)
    return model


def _row_by_row(
    forward: Callable[..., torch.Tensor],
    hidden: torch.Tensor,
    *,
    attention_mask: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **same: Any,
) -> torch.Tensor:
    """A layer on one row of [rows, tokens, width] after the other, which bounds the memory of eager attention."""
    found = []
    for row in range(len(hidden)):
        own = slice(row, row + 1)
        mask = attention_mask[own] if len(attention_mask) > 1 else attention_mask
        cosine, sine = (values[own] for values in position_embeddings)
        found.append(forward(hidden[own], attention_mask=mask, position_embeddings=(cosine, sine), **same))
    return torch.cat(found)


def _reader(prefix: str, read: Callable[[str], nn.Parameter]) -> Callable[..., None]:
    def before(module: nn.Module, _inputs: Any) -> None:
        _replace(module, lambda name, _: read(f"{prefix}.{name}"))

    return before


def _drop(module: nn.Module, _inputs: Any, _output: Any) -> None:
    _replace(module, lambda _, parameter: nn.Parameter(parameter.to("meta"), requires_grad=False))


def _replace(module: nn.Module, make: Callable[[str, nn.Parameter], nn.Parameter]) -> None:
    """Replace each parameter of a module and of those in it; `make` gets its name and itself."""
    for path, part in module.named_modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = make(f"{path}.{name}".lstrip("."), parameter)
