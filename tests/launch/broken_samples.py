"""Starts pretrain.py, in which the ranks of BROKEN_RANKS fail in the midst of a forward when they sample."""

import os
from typing import Any

from transformers import LlamaForCausalLM

import pretrain
from pretraining.cli.errors import run_program
from pretraining.training import agreement

agreement.FAIL_WITHIN_SECONDS = 2.0
generate = LlamaForCausalLM.generate


def fail(*_: Any) -> None:
    raise RuntimeError("no memory left")


def generate_or_fail(model: LlamaForCausalLM, **options: Any) -> Any:
    if os.environ["RANK"] not in os.environ["BROKEN_RANKS"]:
        return generate(model, **options)
    hook = model.model.layers[1].register_forward_pre_hook(fail)
    try:
        return generate(model, **options)
    finally:
        hook.remove()


if __name__ == "__main__":
    LlamaForCausalLM.generate = generate_or_fail
    run_program(pretrain.main)
