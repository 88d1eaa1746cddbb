"""Starts pretrain.py, and interferes where it samples or scores tasks; takes its flags and launchers.

The ranks of BROKEN_RANKS fail in the midst of a forward. With END_AFTER=n the first prompt's EOS comes after n tokens.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from transformers import LlamaForCausalLM

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.distributed import collectives as agreement
from pretraining.training.tasks.scoring import RequestScorer

# A rank that fails alone waits for the other in vain.
agreement.FAILURE_WINDOW_SECONDS = 0.2 if len(os.environ.get("BROKEN_RANKS", "").split()) == 1 else 60.0
generate, score_tasks = LlamaForCausalLM.generate, RequestScorer.tasks


def fail(*_: Any) -> None:
    raise RuntimeError("no memory left")


def generate_otherwise(model: LlamaForCausalLM, **options: Any) -> Any:
    calls = count()

    def end(_head: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        if next(calls) >= int(os.environ.get("END_AFTER", "1000")):
            logits[0, -1, options["generation_config"].eos_token_id] = 1e4
        return logits

    hook = model.lm_head.register_forward_hook(end)
    try:
        with failing(model):
            return generate(model, **options)
    finally:
        hook.remove()


@contextmanager
def failing(model: LlamaForCausalLM) -> Iterator[None]:
    is_broken = os.environ["RANK"] in os.environ.get("BROKEN_RANKS", "")
    hook = model.model.layers[1].register_forward_pre_hook(fail) if is_broken else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def score_otherwise(scorer: Any, tasks: Any) -> Any:
    (engine,) = scorer.losses_of.args
    with failing(engine.module):
        return score_tasks(scorer, tasks)


if __name__ == "__main__":
    LlamaForCausalLM.generate, RequestScorer.tasks = generate_otherwise, score_otherwise
    run_program(pretrain.main)
