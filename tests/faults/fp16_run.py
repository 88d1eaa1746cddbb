"""Starts pretrain.py in fp16 on a CPU, for which DeepSpeed and this suite have to believe that it can."""

from deepspeed.accelerator import get_accelerator

import pretrain
from pretraining.cli.errors import run_program
from pretraining.training import run_plan

if __name__ == "__main__":
    get_accelerator().is_fp16_supported = lambda: True
    run_plan.choose_precision = lambda *_, **__: "fp16"
    run_program(pretrain.main)
