"""Tokens per second of the decoder for one row and for 32, greedy, on random prompts; prints a JSON object.

python3 -m benchmarks.gpu.decode_run MODEL '{"options": {"multiple": 1}, "has_cudnn": true}'
"""

import json
import sys
import time
from typing import Any

import torch

from pretraining.generation.decoder import LlamaDecoder
from pretraining.generation.load_model import load_model
from pretraining.runs.model_source import find_model

NUM_TOKENS, PROMPT_LENGTH = 64, 16
NUM_UNTIMED = 3  # the first loads kernels, the second captures the CUDA graph, the third replays it
ROWS = (1, 32)


def main(model_name: str, setting: dict[str, Any]) -> None:
    """Load the model, and measure."""
    model, _ = load_model(find_model(model_name))
    if setting["has_cudnn"]:
        torch.backends.cuda.enable_cudnn_sdp(True)
    rates = {}
    for num_rows in ROWS:
        decoder = LlamaDecoder(model, num_rows, PROMPT_LENGTH + NUM_TOKENS + 1, **setting["options"])
        rates[f"tokens_per_second_{num_rows}"] = tokens_per_second(decoder)
    sys.stdout.write(json.dumps(rates) + "\n")


def tokens_per_second(decoder: LlamaDecoder) -> float:
    """Tokens per second of all rows together, after untimed steps at the first position."""
    num_rows, generator = decoder.num_rows, torch.Generator().manual_seed(0)
    prompts = torch.randint(decoder.vocab_size, (num_rows, PROMPT_LENGTH), generator=generator).tolist()
    ids = decoder.prefill(prompts, first_row=0).argmax(dim=-1).tolist()
    for _ in range(NUM_UNTIMED):
        decoder.next_logits(ids, [PROMPT_LENGTH] * num_rows).argmax(dim=-1).tolist()  # waits for the GPU
    started_at = time.perf_counter()
    for position in range(PROMPT_LENGTH, PROMPT_LENGTH + NUM_TOKENS):
        ids = decoder.next_logits(ids, [position] * num_rows).argmax(dim=-1).tolist()
    return num_rows * NUM_TOKENS / (time.perf_counter() - started_at)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
