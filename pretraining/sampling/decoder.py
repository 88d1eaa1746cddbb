"""The forward pass of a Llama for text that grows token by token: rows of any lengths side by side, each with its own
places in a cache of keys and values that is made once.

It computes with the weights of the transformers model, without its modules, in which a small model spends most of a
token's time. Its logits are those of the model's own forward (tests/sampling/test_decoder.py).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

PROMPT_TOKENS_AT_ONCE = 8192  # filling included, so that many prompts take no more memory than a long one


class LlamaDecoder:
    """A model and its cache of `num_rows` by `num_positions`; each layer computes on the device it lies on."""

    def __init__(self, model: LlamaForCausalLM, num_rows: int, num_positions: int) -> None:
        weights, config = model.model, model.config
        self.num_rows = num_rows
        self._embedding, self._norm, self._head = weights.embed_tokens.weight, weights.norm, model.lm_head.weight
        self.vocab_size, self.device = len(self._head), self._head.device  # of the logits
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
            # Filled up on the right: nobody sees what stands there before the tokens that come are written over it.
            ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in part], device=device)
            rows = first_row + begin + torch.arange(len(part), device=device).repeat_interleave(width)
            hidden = self._hidden(ids.flatten(), self._places(rows, self._positions[:width].repeat(len(part)), width))
            last = torch.tensor([place * width + len(prompt) - 1 for place, prompt in enumerate(part)])
            found.append(self._logits(hidden[last.to(hidden.device)]))
        return torch.cat(found)

    @torch.inference_mode()
    def next_logits(self, ids: list[int], positions: list[int]) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more id in each of the first rows, at its position, in fp32."""
        now = torch.tensor([ids, positions, range(len(ids))], device=self._positions.device)
        places = self._places(now[2], now[1], width=1)
        places.num_seen = max(positions) + 1
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

    def _places(self, rows: torch.Tensor, positions: torch.Tensor, width: int) -> "_Places":
        return _Places(rows, positions, self._turns[0][positions], self._turns[1][positions], width)

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
    """Where tokens stand in the cache, each row's `width` tokens beside each other, and what they see.

    That is the first `num_seen` positions of their rows, where `mask` [rows, 1, 1, num_seen] is 0 and not -inf, or
    each other where num_seen is 0. `cos` and `sin` [tokens, 1, head_dim] turn them by their positions.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    width: int
    num_seen: int = 0
    mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> "_Places":
        """The same on another device."""
        rows, positions, cos, sin = (part.to(device) for part in (self.rows, self.positions, self.cos, self.sin))
        mask = None if self.mask is None else self.mask.to(device)
        return _Places(rows, positions, cos, sin, self.width, self.num_seen, mask)


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
        heads = torch.cat([_product(inputs, part.weight, part.bias) for part in self._inputs], dim=-1)
        heads = heads.view(len(hidden), -1, head_dim)
        turned = heads[:, :-num_keys]
        halves = turned.roll(head_dim // 2, -1)
        turned.mul_(places.cos).addcmul_(halves, places.sin)
        heads = heads.to(self.cache.dtype)
        queries, written = heads[:, : -2 * num_keys], heads[:, -2 * num_keys :].unflatten(1, (2, num_keys))
        self.cache[places.rows, :, :, places.positions] = written
        found = self._attended(queries, written, places)
        hidden = hidden + _product(found.to(hidden.dtype), self._output.weight, self._output.bias)
        inputs = _normed(hidden, self._norms[1])
        gate = self._activation(_product(inputs, self._gate.weight, self._gate.bias))
        inputs = gate * _product(inputs, self._up.weight, self._up.bias)
        return hidden + _product(inputs, self._down.weight, self._down.bias)

    def _attended(self, queries: torch.Tensor, written: torch.Tensor, places: _Places) -> torch.Tensor:
        """Attention [tokens, heads * head_dim] of queries [tokens, heads, head_dim]."""
        num_keys, width = self.cache.shape[2], places.width
        num_rows = len(queries) // width
        if places.num_seen:  # heads that share keys are further queries of them
            keys, values = self.cache[:num_rows, :, :, : places.num_seen].unbind(1)
            queries = queries.unflatten(1, (num_keys, -1))
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=places.mask)
            return found.flatten(1)
        queries = queries.unflatten(0, (-1, width)).transpose(1, 2)
        keys, values = written.unflatten(0, (-1, width)).permute(2, 0, 3, 1, 4)
        shared = num_keys < queries.shape[1]
        found = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=shared)
        return found.transpose(1, 2).flatten(0, 1).flatten(1)


def _product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Inputs [tokens, size] times a weight [outputs, size]: what a linear layer computes.

    On a CPU in fp32 a vector is multiplied by both halves of the weight as a batch of two, which makes a token of the
    quickstart's model 1.7 times as fast, and several vectors with the weight on the left: its head is 2.4 times as
    fast by 32, since only then do the cores share the work (torch 2.13 with MKL, AMD EPYC, 2 cores).
    """
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
        return functional.linear(inputs, weight, bias)
    if len(inputs) > 1:
        found = torch.mm(weight, inputs.t()).t()
    elif len(weight) % 2 == 0:
        found = torch.bmm(weight.unflatten(0, (2, -1)), inputs.t().expand(2, -1, 1)).view(1, -1)
    else:
        found = functional.linear(inputs, weight)
    return found if bias is None else found + bias


def _normed(hidden: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
