"""Starts pretrain.py in fp16 on a CPU, for which DeepSpeed and this suite have to believe that it can.

Keeps in KEPT, if given, what a resume restored.
"""

import os
from pathlib import Path

from deepspeed.accelerator import get_accelerator

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.config import run_config as run_plan
from tests.programs.drivers.elastic_run import keep_what_is_restored

if __name__ == "__main__":
    get_accelerator().is_fp16_supported = lambda: True
    run_plan.choose_precision = lambda *_, **__: "fp16"
    if "KEPT" in os.environ:
        keep_what_is_restored(Path(os.environ["KEPT"]))
    run_program(pretrain.main)
