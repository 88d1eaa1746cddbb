"""pretrain.py on GPUs that hold MAX_BLOCKS blocks at a time: with more, the last rank runs out of memory.

The others wait for it then, as they do on real GPUs.
"""

import os
from typing import Any

import torch

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import num_processes, process_rank
from pretraining.training.trainer.trainer import PretrainingTrainer


def main() -> None:
    compute_loss = PretrainingTrainer.compute_loss

    def limited(trainer: PretrainingTrainer, model: Any, inputs: Any, **options: Any) -> torch.Tensor:
        if process_rank() == num_processes() - 1 and len(inputs["input_ids"]) > int(os.environ["MAX_BLOCKS"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute_loss(trainer, model, inputs, **options)

    PretrainingTrainer.compute_loss = limited
    run_program(pretrain.main)  # not by its path, which the children would start then


if __name__ == "__main__":
    main()
