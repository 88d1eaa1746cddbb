"""The forward pass of a Llama for text that grows token by token: rows of any lengths side by side, each with its own
places in a cache of keys and values that is made once.

It computes with the weights of the transformers model, without its modules, in which a small model spends most of a
token's time. Its logits are those of the model's own forward (tests/unit/generation/test_decoder.py).
"""

import itertools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

PROMPT_TOKENS_AT_ONCE = 8192  # filling included, so that many prompts take no more memory than a long one


class LlamaDecoder:
    """A model and its cache of `num_rows` by `num_positions`; each layer computes on the device it lies on."""

    def __init__(self, model: LlamaForCausalLM, num_rows: int, num_positions: int) -> None:
        weights, config = model.model, model.config
        self.num_rows = num_rows
        self._embedding, self._norm, self._head = weights.embed_tokens.weight, weights.norm, model.lm_head
        self.vocab_size, self.device = len(self._head.weight), self._head.weight.device  # of the logits
        self._layers = [_Layer(layer, num_rows, num_positions, config) for layer in weights.layers]
        self._positions = torch.arange(num_positions, device=self._embedding.device)
        cos, sin = weights.rotary_emb(self._embedding, self._positions[None])
        # A head is turned by its halves changing places, one of them with the other sign; here the sines have the sign.
        sin[..., : sin.shape[-1] // 2] *= -1
        self._turns = (cos[0, :, None], sin[0, :, None])

    @torch.inference_mode()
    def read_prompts(self, prompts: list[list[int]], *, first_row: int) -> torch.Tensor:
        """Fill rows from `first_row` on with these ids: logits [prompts, vocabulary] after the last of each, fp32."""
        device, width = self._positions.device, max(map(len, prompts))
        at_once = max(PROMPT_TOKENS_AT_ONCE // width, 1)
        found = []
        for begin in range(0, len(prompts), at_once):
            part = prompts[begin : begin + at_once]
            triples = [
                (token, row, position)
                for row, prompt in enumerate(part, start=first_row + begin)
                for position, token in enumerate(prompt)
            ]
            ids, rows, positions = torch.tensor(triples, device=device).unbind(1)
            places = self._places(rows, positions, slice(first_row + begin, first_row + begin + len(part)), width)
            last = torch.tensor(list(itertools.accumulate(map(len, part)))) - 1
            hidden = self._hidden(ids, places)
            found.append(self._logits(hidden[last.to(hidden.device)]))
        return torch.cat(found)

    @torch.inference_mode()
    def next_logits(self, ids: list[int], positions: list[int]) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more id in each of the first rows, at its position, in fp32."""
        now = torch.tensor([ids, positions, range(len(ids))], device=self._positions.device)
        places = self._places(now[2], now[1], slice(len(ids)), max(positions) + 1)
        places.are_next = True
        if min(positions) + 1 < places.num_seen:
            hidden_ones = self._positions[: places.num_seen] > now[1][:, None, None, None]
            places.mask = torch.zeros_like(hidden_ones, dtype=self._layers[0].cache.dtype)
            places.mask.masked_fill_(hidden_ones, -torch.inf)
        return self._logits(self._hidden(now[0], places))

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, *, num_positions: int) -> None:
        """Let the first positions of a row be those of another."""
        for layer in self._layers:
            layer.cache[target, :, :, :num_positions] = layer.cache[source, :, :, :num_positions]

    def _places(self, rows: torch.Tensor, positions: torch.Tensor, span: slice, num_seen: int) -> "_Places":
        return _Places(rows, positions, self._turns[0][positions], self._turns[1][positions], span, num_seen)

    def _hidden(self, ids: torch.Tensor, places: "_Places") -> torch.Tensor:
        """Hidden states [tokens, size] of ids [tokens] at their places."""
        hidden = functional.embedding(ids, self._embedding)
        for layer in self._layers:
            if hidden.device != layer.device:
                hidden, places = hidden.to(layer.device), places.to(layer.device)
            hidden = layer.forward(hidden, places)
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = _normed(hidden.to(self._norm.weight.device), self._norm).to(self.device)
        return _product(hidden, self._head).float().contiguous()


@dataclass
class _Places:
    """Where tokens stand in the cache, row by row, and what they see there.

    Their rows are `span`, and the first `num_seen` positions are seen: by prompts, of which all tokens are there, those
    up to a token's own; by next tokens, one in each row, those where `mask` [rows, 1, 1, num_seen] is 0 and not -inf.
    `cos` and `sin` [tokens, 1, head_dim] turn them by their positions.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    span: slice
    num_seen: int
    are_next: bool = False
    mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> "_Places":
        """The same on another device."""
        rows, positions, cos, sin = (part.to(device) for part in (self.rows, self.positions, self.cos, self.sin))
        mask = None if self.mask is None else self.mask.to(device)
        return _Places(rows, positions, cos, sin, self.span, self.num_seen, self.are_next, mask)


class _Layer:
    """One layer's weights beside its keys and values [rows, 2, heads, positions, head_dim]."""

    def __init__(self, layer: LlamaDecoderLayer, num_rows: int, num_positions: int, config: LlamaConfig) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.device, dtype = attention.q_proj.weight.device, attention.q_proj.weight.dtype
        # A CPU's attention is six times faster in fp32 than in bf16, by 32 rows; GPUs want one precision.
        dtype = torch.float32 if self.device.type == "cpu" else dtype
        # Zeros, since a mask keeps no number out that is none.
        shape = (num_rows, 2, config.num_key_value_heads, num_positions, attention.head_dim)
        self.cache = torch.zeros(shape, dtype=dtype, device=self.device)
        self._inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = attention.o_proj
        self._gate, self._up, self._down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._activation = mlp.act_fn
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)

    def forward(self, hidden: torch.Tensor, places: _Places) -> torch.Tensor:
        """Hidden states [tokens, size] behind this layer; keys and values go to their places."""
        _, _, num_keys, _, head_dim = self.cache.shape
        inputs = _normed(hidden, self._norms[0])
        heads = torch.cat([_product(inputs, part) for part in self._inputs], dim=-1)
        heads = heads.view(len(hidden), -1, head_dim)
        turned = heads[:, :-num_keys]
        halves = turned.roll(head_dim // 2, -1)
        turned.mul_(places.cos).addcmul_(halves, places.sin)
        heads = heads.to(self.cache.dtype)
        queries, written = heads[:, : -2 * num_keys], heads[:, -2 * num_keys :].unflatten(1, (2, num_keys))
        self.cache[places.rows, :, :, places.positions] = written
        found = self._attended(queries, places)
        hidden = hidden + _product(found.to(hidden.dtype), self._output)
        inputs = _normed(hidden, self._norms[1])
        gate = self._activation(_product(inputs, self._gate))
        inputs = gate * _product(inputs, self._up)
        return hidden + _product(inputs, self._down)

    def _attended(self, queries: torch.Tensor, places: _Places) -> torch.Tensor:
        """Attention [tokens, heads * head_dim] of queries [tokens, heads, head_dim]."""
        keys, values = self.cache[places.span, :, :, : places.num_seen].unbind(1)
        num_keys = keys.shape[1]
        if places.are_next:  # heads that share keys are further queries of them
            queries = queries.unflatten(1, (num_keys, -1))
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=places.mask)
            return found.flatten(1)
        # Only here are shorter prompts filled up, on the right; what stands there in the cache is not seen by them.
        rows, shared = places.rows - places.span.start, num_keys < queries.shape[1]
        filled = queries.new_zeros(len(keys), places.num_seen, *queries.shape[1:])
        filled[rows, places.positions] = queries
        found = functional.scaled_dot_product_attention(
            filled.transpose(1, 2), keys, values, is_causal=True, enable_gqa=shared
        )
        return found.transpose(1, 2)[rows, places.positions].flatten(1)


def _product(inputs: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Outputs [tokens, outputs] of a linear layer for inputs [tokens, size].

    Where a CPU computes in fp32 with a weight that is too small to be packed, a vector is multiplied by both halves of
    it as a batch of two, which makes a token of the quickstart's model 1.3 times as fast, and several vectors with the
    weight on the left, 1.1 times as fast by 32 (torch 2.13 with MKL, AMD EPYC, 2 cores).
    """
    if not isinstance(layer, nn.Linear):
        return layer(inputs)
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
        return functional.linear(inputs, layer.weight, layer.bias)
    if len(inputs) > 1:
        found = torch.mm(layer.weight, inputs.t()).t()
    elif layer.out_features % 2 == 0:
        found = torch.bmm(layer.weight.unflatten(0, (2, -1)), inputs.t().expand(2, -1, 1)).view(1, -1)
    else:
        found = functional.linear(inputs, layer.weight)
    return found if layer.bias is None else found + layer.bias


def _normed(hidden: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
