"""The forward pass of a Llama for generation, with a preallocated key/value cache for rows of different lengths.

It uses the weights of the transformers model without its modules, whose overhead dominates the time per token of a
small model. Its logits are those of the model's own forward (tests/unit/generation/test_decoder.py).
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from pretraining.generation.static_shapes import MAX_GRAPH_ROWS, StepGraphs, length_multiple, round_up

MAX_PREFILL_TOKENS = 8192  # per forward pass, padding included: limits the memory of many prompts


class LlamaDecoder:
    """A model and its cache of `num_rows` by `num_positions`; each layer computes on its own device.

    With a `multiple` above 1, lengths are padded to multiples of it and decode steps have all rows, or a multiple of
    `MAX_GRAPH_ROWS`, so that few shapes occur; the default is for the device of the model. The tokens do not change.
    """

    def __init__(
        self, model: LlamaForCausalLM, num_rows: int, num_positions: int, *, multiple: int | None = None
    ) -> None:
        weights, config = model.model, model.config
        self.num_rows = num_rows
        self._embedding, self._norm, self._head = weights.embed_tokens.weight, weights.norm, model.lm_head
        self.vocab_size, self.device = len(self._head.weight), self._head.weight.device  # of the logits
        self.multiple = multiple or length_multiple(self.device)
        num_cached = round_up(num_positions, self.multiple)
        self._layers = [_Layer(layer, num_rows, num_cached, config) for layer in weights.layers]
        self._positions = torch.arange(num_cached, device=self._embedding.device)
        self._rows = torch.arange(num_rows, device=self._embedding.device)
        # Not for the padding: the frequencies of some kinds depend on the largest position.
        cos, sin = weights.rotary_emb(self._embedding, self._positions[None, :num_positions])
        # Rotary embedding swaps the halves of a head and negates one; here the sines have the sign.
        sin[..., : sin.shape[-1] // 2] *= -1
        self._rotation = (cos[0, :, None], sin[0, :, None])
        devices = {self.device, self._embedding.device, *(layer.device for layer in self._layers)}
        has_graphs = self.device.type == "cuda" and len(devices) == 1 and self.multiple > 1
        self._graphs = StepGraphs() if has_graphs else None

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]], *, first_row: int) -> torch.Tensor:
        """Compute prompts into the rows from `first_row`: logits [prompts, vocabulary] after each, in fp32."""
        device, width = self._positions.device, round_up(max(map(len, prompts)), self.multiple)
        num_prompts = max(MAX_PREFILL_TOKENS // width, 1)
        logits = []
        for start in range(0, len(prompts), num_prompts):
            some = prompts[start : start + num_prompts]
            triples = [
                (token, row, position)
                for row, prompt in enumerate(some, start=first_row + start)
                for position, token in enumerate(prompt)
            ]
            ids, rows, positions = torch.tensor(triples, device=device).unbind(1)
            cached = self._cache_positions(
                rows, positions, slice(first_row + start, first_row + start + len(some)), width
            )
            last = torch.tensor(list(itertools.accumulate(map(len, some)))) - 1
            hidden = self._hidden_states(ids, cached)
            logits.append(self._logits(hidden[last.to(hidden.device)]))
        return torch.cat(logits)

    @torch.inference_mode()
    def next_logits(self, ids: list[int], positions: list[int]) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more id in each of the first rows, at its position, in fp32."""
        num_visible = round_up(max(positions) + 1, self.multiple)
        if self.multiple == 1:
            inputs = torch.tensor([ids, positions], device=self._positions.device)
            return self._decode(inputs, num_visible, is_masked=min(positions) + 1 < num_visible)
        # Rows without a sequence compute a token at position 0, which the next prompt overwrites.
        padding = [0] * (min(round_up(len(ids), MAX_GRAPH_ROWS), self.num_rows) - len(ids))
        inputs = torch.tensor([ids + padding, positions + padding], device=self._positions.device)
        if self._graphs is None or inputs.shape[1] > MAX_GRAPH_ROWS:
            return self._decode(inputs, num_visible)[: len(ids)]
        return self._graphs.run(self._decode, inputs, num_visible)[: len(ids)]

    def _decode(self, inputs: torch.Tensor, num_visible: int, *, is_masked: bool = True) -> torch.Tensor:
        """Logits [rows, vocabulary] after ids and positions [2, rows], which see `num_visible` positions or less."""
        ids, positions = inputs
        num_rows = len(ids)
        cached = self._cache_positions(self._rows[:num_rows], positions, slice(num_rows), num_visible)
        cached.is_decode_step = True
        if is_masked:
            is_hidden = self._positions[:num_visible] > positions[:, None, None, None]
            cached.mask = torch.zeros_like(is_hidden, dtype=self._layers[0].cache.dtype)
            cached.mask.masked_fill_(is_hidden, -torch.inf)
        return self._logits(self._hidden_states(ids, cached))

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, *, num_positions: int) -> None:
        """Copy the first positions of a row to another row."""
        for layer in self._layers:
            layer.cache[target, :, :, :num_positions] = layer.cache[source, :, :, :num_positions]

    def _cache_positions(
        self, rows: torch.Tensor, positions: torch.Tensor, span: slice, num_visible: int
    ) -> "_CachePositions":
        cos, sin = (values[positions] for values in self._rotation)
        return _CachePositions(rows, positions, cos, sin, span, num_visible)

    def _hidden_states(self, ids: torch.Tensor, cached: "_CachePositions") -> torch.Tensor:
        """Hidden states [tokens, size] of ids [tokens]."""
        hidden = functional.embedding(ids, self._embedding)
        for layer in self._layers:
            if hidden.device != layer.device:
                hidden, cached = hidden.to(layer.device), cached.to(layer.device)
            hidden = layer.forward(hidden, cached)
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = _rms_norm(hidden.to(self._norm.weight.device), self._norm).to(self.device)
        return _linear(hidden, self._head).float().contiguous()


@dataclass
class _CachePositions:
    """Where tokens are in the cache, row by row, and which positions they attend to.

    Their rows are `span`. Prompt tokens attend to positions up to their own. In a decode step each row has one token,
    which attends to the first `num_visible` positions where `mask` [rows, 1, 1, num_visible] is 0, not -inf.
    `cos` and `sin` [tokens, 1, head_dim] are the rotary embedding of the positions.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    span: slice
    num_visible: int
    is_decode_step: bool = False
    mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> "_CachePositions":
        """Copy to another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)


class _Layer:
    """One layer's weights and its keys and values [rows, 2, heads, positions, head_dim]."""

    def __init__(self, layer: LlamaDecoderLayer, num_rows: int, num_positions: int, config: LlamaConfig) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.device, dtype = attention.q_proj.weight.device, attention.q_proj.weight.dtype
        # On a CPU, attention of 32 rows is six times as fast in fp32 as in bf16; GPUs need one dtype.
        dtype = torch.float32 if self.device.type == "cpu" else dtype
        # Zeros: a mask does not remove a NaN.
        shape = (num_rows, 2, config.num_key_value_heads, num_positions, attention.head_dim)
        self.cache = torch.zeros(shape, dtype=dtype, device=self.device)
        self._inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = attention.o_proj
        self._gate, self._up, self._down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._activation = mlp.act_fn
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)

    def forward(self, hidden: torch.Tensor, cached: _CachePositions) -> torch.Tensor:
        """Hidden states [tokens, size] after this layer; keys and values are written to the cache."""
        _, _, num_keys, _, head_dim = self.cache.shape
        inputs = _rms_norm(hidden, self._norms[0])
        heads = torch.cat([_linear(inputs, projection) for projection in self._inputs], dim=-1)
        heads = heads.view(len(hidden), -1, head_dim)
        rotated = heads[:, :-num_keys]
        swapped = rotated.roll(head_dim // 2, -1)
        rotated.mul_(cached.cos).addcmul_(swapped, cached.sin)
        heads = heads.to(self.cache.dtype)
        queries, written = heads[:, : -2 * num_keys], heads[:, -2 * num_keys :].unflatten(1, (2, num_keys))
        self.cache[cached.rows, :, :, cached.positions] = written
        attended = self._attention(queries, cached)
        hidden = hidden + _linear(attended.to(hidden.dtype), self._output)
        inputs = _rms_norm(hidden, self._norms[1])
        gate = self._activation(_linear(inputs, self._gate))
        inputs = gate * _linear(inputs, self._up)
        return hidden + _linear(inputs, self._down)

    def _attention(self, queries: torch.Tensor, cached: _CachePositions) -> torch.Tensor:
        """Attention [tokens, heads * head_dim] of queries [tokens, heads, head_dim]."""
        keys, values = self.cache[cached.span, :, :, : cached.num_visible].unbind(1)
        num_keys = keys.shape[1]
        if cached.is_decode_step:  # the heads that share keys are further queries of them
            queries = queries.unflatten(1, (num_keys, -1))
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=cached.mask)
            return found.flatten(1)
        # Only here are shorter prompts padded, on the right, where causal attention ignores the cache's content.
        rows, is_shared = cached.rows - cached.span.start, num_keys < queries.shape[1]
        padded = queries.new_zeros(len(keys), cached.num_visible, *queries.shape[1:])
        padded[rows, cached.positions] = queries
        found = functional.scaled_dot_product_attention(
            padded.transpose(1, 2), keys, values, is_causal=True, enable_gqa=is_shared
        )
        return found.transpose(1, 2)[rows, cached.positions].flatten(1)


def _linear(inputs: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Outputs [tokens, outputs] of a linear layer for inputs [tokens, size].

    On a CPU in fp32, with a weight too small to be packed, one vector is multiplied by the two halves of the weight as
    a batch of two (1.3 times as fast per token of the quickstart's model), and several vectors with the weight on the
    left (1.1 times as fast for 32; torch 2.13 with MKL, AMD EPYC, 2 cores).
    """
    if not isinstance(layer, nn.Linear):
        return layer(inputs)
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
        return functional.linear(inputs, layer.weight, layer.bias)
    if len(inputs) > 1:
        outputs = torch.mm(layer.weight, inputs.t()).t()
    elif layer.out_features % 2 == 0:
        outputs = torch.bmm(layer.weight.unflatten(0, (2, -1)), inputs.t().expand(2, -1, 1)).view(1, -1)
    else:
        outputs = functional.linear(inputs, layer.weight)
    return outputs if layer.bias is None else outputs + layer.bias


def _rms_norm(hidden: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
