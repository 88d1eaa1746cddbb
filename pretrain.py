#!/usr/bin/env python3
"""Train a Llama on token blocks, from random weights or those of a model, with DeepSpeed ZeRO.

    deepspeed --num_gpus=8 pretrain.py                           # Llama-2-7B on blocks/, settings of Llama 2
    deepspeed pretrain.py --model llama2_13b --deepspeed ds_config_offload.json
    deepspeed --num_gpus=2 pretrain.py --recipe recipes/quickstart/pretrain.yaml
    deepspeed --num_gpus=8 pretrain.py --weights meta-llama/Llama-2-7b-hf --learning_rate 3e-5
    deepspeed --hostfile=hosts pretrain.py --output_dir /shared/runs/7b      # several machines, one run folder
    python3 pretrain.py --recipe recipes/llama2_7b.yaml --dry_run --num_gpus 8 --gpu_type h200   # starts nothing

torchrun, mpirun, srun and python3 (one process) start it as well. The run folder receives metrics.jsonl, checkpoints
and, at the end, the exported model. preprocess.py writes the blocks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretraining.cli.arguments.pretrain import DataArguments, PretrainArguments, parse_pretrain_arguments
from pretraining.cli.program import importing_libraries, run_program

if TYPE_CHECKING:
    from pretraining.data.mixture import Mixture


def main(argv: Sequence[str]) -> None:
    """Read the flags and check model and data, then train; torch is imported after that, so a mistake costs no time."""
    from pretraining.training.distributed.machines import meet_machines

    meet_machines()
    arguments = parse_pretrain_arguments(__doc__ or "", argv)
    if arguments.trainer.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from pretraining.training.model.fields import model_fields
    from pretraining.training.model.parent import with_parent

    arguments = with_parent(arguments)
    model_fields(arguments.model, None)  # before blocks are made or brought here
    if arguments.plan.dry_run:
        with importing_libraries():
            from pretraining.training.dry_run.dry_run import print_plan

        print_plan(arguments)
    else:
        train(arguments)


def train(arguments: PretrainArguments) -> None:
    """Find the blocks and train on them."""
    from pretraining.training.config.early_checks import check_inputs

    mixture = find_data(arguments.data)
    check_inputs(arguments, mixture)

    with importing_libraries():
        from pretraining.training.run import pretrain

    pretrain(arguments, mixture)


def find_data(flags: DataArguments) -> Mixture:
    """The blocks to train on, brought or made here if need be."""
    from pretraining.data.phases import load_data
    from pretraining.data.synthetic import synthetic_mixture

    if flags.is_synthetic:
        return synthetic_mixture(block_length=flags.block_length or 4096, vocab_size=flags.vocab_size)
    return load_data(flags)


if __name__ == "__main__":
    run_program(main)
