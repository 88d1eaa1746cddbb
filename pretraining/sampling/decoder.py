"""The forward pass of a Llama for text that grows token by token: rows of any lengths side by side, each with its own
places in a cache of keys and values that is made once.

It computes with the weights of the transformers model, without its modules, in which a small model spends most of a
token's time. Its logits are those of the model's own forward (tests/sampling/test_decoder.py).
"""

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

PROMPT_TOKENS_AT_ONCE = 8192  # filling included, so that many prompts take no more memory than a long one

Pair = tuple[torch.Tensor, torch.Tensor]


class LlamaDecoder:
    """A model and its cache of `num_rows` by `num_positions`; each layer computes on the device it lies on."""

    def __init__(self, model: LlamaForCausalLM, num_rows: int, num_positions: int) -> None:
        weights, config = model.model, model.config
        self.num_rows = num_rows
        self._embedding, self._norm, self._head = weights.embed_tokens.weight, weights.norm, model.lm_head.weight
        self.vocab_size, self.device = len(self._head), self._head.device  # of the logits
        self._num_groups = config.num_attention_heads // config.num_key_value_heads
        self._layers = [_Layer(layer, num_rows, num_positions, config) for layer in weights.layers]
        self._positions = torch.arange(num_positions, device=self._embedding.device)
        self._rows = torch.arange(num_rows, device=self._embedding.device)[:, None]
        cos, sin = weights.rotary_emb(self._embedding, self._positions[None])
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
            rows = torch.arange(len(part), device=device)
            hidden = self._hidden(ids, (first_row + begin + rows[:, None], self._positions[:width].expand_as(ids)))
            last = torch.tensor([len(prompt) - 1 for prompt in part], device=device)
            found.append(self._logits(hidden[rows.to(hidden.device), last.to(hidden.device)]))
        return torch.cat(found)

    @torch.inference_mode()
    def next_logits(self, ids: list[int], positions: list[int]) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more id in each of the first rows, at its position, in fp32."""
        now = torch.tensor([ids, positions], device=self._positions.device)[..., None]
        hidden = self._hidden(now[0], (self._rows[: len(ids)], now[1]), num_seen=max(positions) + 1)
        return self._logits(hidden[:, 0])

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, *, num_positions: int) -> None:
        """Let the first positions of a row be those of another."""
        for layer in self._layers:
            for cache in (layer.keys, layer.values):
                cache[target, :num_positions] = cache[source, :num_positions]

    def _hidden(self, ids: torch.Tensor, places: Pair, *, num_seen: int | None = None) -> torch.Tensor:
        """Hidden states [rows, width, size] of ids [rows, width] at their places (rows, positions).

        They see the first `num_seen` positions of the cache, or each other where no others are before them.
        """
        hidden, positions = functional.embedding(ids, self._embedding), places[1]
        turns = (self._turns[0][positions], self._turns[1][positions])
        mask = (self._positions[: num_seen or ids.shape[1]] <= positions[..., None])[:, None]
        if self._num_groups > 1:
            mask = mask.repeat(1, 1, self._num_groups, 1)  # heads that share keys are further queries of them
        for layer in self._layers:
            if hidden.device != layer.device:
                hidden, mask = hidden.to(layer.device), mask.to(layer.device)
                turns = (turns[0].to(layer.device), turns[1].to(layer.device))
                places = (places[0].to(layer.device), places[1].to(layer.device))
            hidden = layer.forward(hidden, places, turns, mask, num_seen)
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.to(self._norm.weight.device)
        return functional.linear(_normed(hidden, self._norm).to(self.device), self._head).float()


class _Layer:
    """One layer's weights beside its keys and values [rows, positions, heads, head_dim]."""

    def __init__(self, layer: LlamaDecoderLayer, num_rows: int, num_positions: int, config: LlamaConfig) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.device, dtype = attention.q_proj.weight.device, attention.q_proj.weight.dtype
        # A CPU's attention is six times faster in fp32 than in bf16, by 32 rows; GPUs want one precision.
        dtype = torch.float32 if self.device.type == "cpu" else dtype
        # Zeros, since a mask keeps no number out that is none.
        shape = (num_rows, num_positions, config.num_key_value_heads, attention.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
        self._inputs = [(part.weight, part.bias) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self._output = (attention.o_proj.weight, attention.o_proj.bias)
        self._gate, self._up, self._down = (
            (part.weight, part.bias) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self._activation = mlp.act_fn
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)

    def forward(
        self, hidden: torch.Tensor, places: Pair, turns: Pair, mask: torch.Tensor, num_seen: int | None
    ) -> torch.Tensor:
        """Hidden states behind this layer; keys and values go to their places."""
        inputs = _normed(hidden, self._norms[0])
        shape = (*hidden.shape[:2], -1, self.keys.shape[-1])
        queries, keys, values = (functional.linear(inputs, *part).view(shape) for part in self._inputs)
        queries, keys = _turned(queries, turns), _turned(keys, turns)
        keys, values = keys.to(self.keys.dtype), values.to(self.keys.dtype)
        self.keys[places], self.values[places] = keys, values
        if num_seen is not None:
            keys, values = self.keys[: len(hidden), :num_seen], self.values[: len(hidden), :num_seen]
        found = _attended(queries.to(keys.dtype), keys, values, mask)
        hidden = hidden + functional.linear(found.to(hidden.dtype), *self._output)
        inputs = _normed(hidden, self._norms[1])
        gate = self._activation(functional.linear(inputs, *self._gate))
        return hidden + functional.linear(gate * functional.linear(inputs, *self._up), *self._down)


def _attended(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention [rows, width, heads * head_dim]; several heads of queries share one of keys."""
    num_rows, width, _, head_dim = queries.shape
    num_heads = keys.shape[2]
    grouped = queries.view(num_rows, width, num_heads, -1, head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    found = functional.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    return found.view(num_rows, num_heads, -1, width, head_dim).permute(0, 3, 1, 2, 4).reshape(num_rows, width, -1)


def _normed(hidden: torch.Tensor, norm: LlamaRMSNorm) -> torch.Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def _turned(heads: torch.Tensor, turns: Pair) -> torch.Tensor:
    """Rotary positions: heads [rows, width, heads, head_dim], turned by cos and sin [rows, width, 1, head_dim]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * turns[0] + torch.cat((-second, first), dim=-1) * turns[1]
