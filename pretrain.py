#!/usr/bin/env python3
"""Train a Llama from random weights on token blocks, with DeepSpeed ZeRO-3.

    deepspeed --num_gpus=8 pretrain.py                           # Llama-2-7B on blocks/, settings of Llama 2
    deepspeed pretrain.py --model llama2_13b --deepspeed ds_config_offload.json
    deepspeed --num_gpus=2 pretrain.py --recipe recipes/quickstart/pretrain.yaml

torchrun, mpirun and python3 (one process) start it as well. The run folder receives metrics.jsonl, checkpoints and, at
the end, the exported model. Make the blocks with preprocess.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pretraining.cli.arguments import DataArguments, ModelArguments, trainer_group
from pretraining.cli.errors import run_program
from pretraining.cli.launchers import share_cores
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.corpus.store_source import find_store


def main(argv: Sequence[str]) -> None:
    """Read the flags, then train; torch is imported in between, so that a wrong flag costs no time."""
    groups = [dataclass_group("Model", ModelArguments), dataclass_group("Data", DataArguments), trainer_group()]
    model_arguments, data_arguments, trainer_flags = parse_recipe(__doc__ or "", groups, argv)
    source = find_store(data_arguments.dataset, revision=data_arguments.dataset_revision)

    share_cores()
    if trainer_flags.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from pretraining.training.program import pretrain

    pretrain(model_arguments, data_arguments, trainer_flags, source)


if __name__ == "__main__":
    run_program(main)
