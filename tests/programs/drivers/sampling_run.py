"""Starts pretrain.py, and interferes where it samples; takes its flags and launchers.

The ranks of BROKEN_RANKS fail in the midst of a forward. With END_AFTER=n the first prompt's EOS comes after n tokens.
"""

import os
from itertools import count
from typing import Any

import torch
from transformers import LlamaForCausalLM

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.distributed import collectives as agreement

agreement.FAILURE_WINDOW_SECONDS = 2.0
generate = LlamaForCausalLM.generate


def fail(*_: Any) -> None:
    raise RuntimeError("no memory left")


def generate_otherwise(model: LlamaForCausalLM, **options: Any) -> Any:
    calls = count()

    def end(_head: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        if next(calls) >= int(os.environ.get("END_AFTER", "1000")):
            logits[0, -1, options["generation_config"].eos_token_id] = 1e4
        return logits

    hooks = [model.lm_head.register_forward_hook(end)]
    if os.environ["RANK"] in os.environ.get("BROKEN_RANKS", ""):
        hooks.append(model.model.layers[1].register_forward_pre_hook(fail))
    try:
        return generate(model, **options)
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    LlamaForCausalLM.generate = generate_otherwise
    run_program(pretrain.main)
