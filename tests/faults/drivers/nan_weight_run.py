"""Starts pretrain.py and plants a NaN into its state; takes its flags and launchers.

NAN=[[step, rank, what], ...] plants, at the end of each step, into what this rank holds of the last weights ("weight"),
their fp32 master copies ("master") or the first moments of the optimizer ("moment"), or into the padding behind weights
("padding"). Each is planted once, even if a run goes back and makes the step again.
"""

import json
import os
import sys
from typing import Any

import torch
from transformers import TrainerCallback

import pretrain
from pretraining.cli.program import run_program
from pretraining.training import run as program
from pretraining.training.distributed.deepspeed_internals import master_weights


class NanPlanter(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.left = json.loads(os.environ["NAN"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = next((plant for plant in self.left if plant[0] == state.global_step), None)
        if due is None:
            return
        self.left.remove(due)
        if due[1] == args.process_index:
            self.plant(due[2])

    @torch.no_grad()
    def plant(self, what: str) -> None:
        zero = self.trainer.model_wrapped.optimizer
        if what == "padding":
            self.plant_padding(zero)
            return
        if what == "weight":
            target = list(self.trainer.model_wrapped.module.parameters())[-1].ds_tensor
        else:
            target = master_weights(zero)[-1]
        if what == "moment":
            target = zero.optimizer.state[target]["exp_avg"]
        target.view(-1)[3] = torch.nan

    def plant_padding(self, zero: Any) -> None:
        """Behind each matrix of 1,024 numbers, in its partition and its fp32 copy."""
        for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for parameter in group:
                offset += parameter.ds_tensor.ds_numel
                if parameter.ds_numel == 1024:
                    parameter.ds_tensor.view(-1)[-1] = flat[offset - 1] = torch.nan
                    sys.stdout.write("padding is NaN\n")


def main() -> None:
    make_trainer = program.make_trainer

    def make_planted(*args: Any) -> Any:
        trainer = make_trainer(*args)
        trainer.callback_handler.callbacks.insert(0, NanPlanter(trainer))
        return trainer

    program.make_trainer = make_planted
    run_program(pretrain.main)


if __name__ == "__main__":
    main()
    sys.exit()
