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
from pretraining.generation.source import find_model

NUM_TOKENS, PROMPT_LENGTH = 64, 16
ROWS = (1, 32)


def main(model_name: str, setting: dict[str, Any]) -> None:
    """Load the model, and measure."""
    model, _ = load_model(find_model(model_name))
    if setting["has_cudnn"]:
        torch.backends.cuda.enable_cudnn_sdp(True)
    rates = {}
    for num_rows in ROWS:
        decoder = LlamaDecoder(model, num_rows, PROMPT_LENGTH + NUM_TOKENS + 1, **setting["options"])
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(decoder.vocab_size, (num_rows, PROMPT_LENGTH), generator=generator).tolist()
        ids = decoder.prefill(prompts, first_row=0).argmax(dim=-1).tolist()
        started_at = time.perf_counter()
        for position in range(PROMPT_LENGTH, PROMPT_LENGTH + NUM_TOKENS):
            ids = decoder.next_logits(ids, [position] * num_rows).argmax(dim=-1).tolist()
        rates[f"tokens_per_second_{num_rows}"] = num_rows * NUM_TOKENS / (time.perf_counter() - started_at)
    sys.stdout.write(json.dumps(rates) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
