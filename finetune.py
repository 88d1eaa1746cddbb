#!/usr/bin/env python3
"""Instruction tuning of an exported model on conversations, with DeepSpeed ZeRO-3.

    deepspeed --num_gpus=8 finetune.py --model runs/llama2_7b/model --data_files chat.jsonl
    deepspeed --num_gpus=2 finetune.py --model runs/quickstart --data_files chat=a.jsonl code=b.jsonl.gz
    deepspeed finetune.py --model runs/news --data_files qa.parquet --prompt_field question --response_field answer

Files are JSON lines, JSON or Parquet, or a data set of the Hub. A record has messages, conversations (ShareGPT), prompt
and response or completion, instruction and output (Alpaca), or fields that flags name. The loss covers the answers of
the assistant and the EOS after them. The run folder is like one of pretrain.py, and its exported model carries the chat
template: generate.py --chat talks to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.cli.program import importing_libraries, run_program


def main(argv: Sequence[str]) -> None:
    """Read the flags and find model and files, then train; torch is imported after that, so a mistake costs no time."""
    from pretraining.training.distributed.machines import meet_machines

    meet_machines()
    arguments = parse_finetune_arguments(__doc__ or "", argv)
    run = arguments.run
    if run.trainer.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from pretraining.finetuning.inputs import find_inputs_of

    inputs = find_inputs_of(arguments)
    with importing_libraries():
        from pretraining.finetuning.pipeline import finetune

    finetune(arguments.conversations, inputs)


if __name__ == "__main__":
    run_program(main)
