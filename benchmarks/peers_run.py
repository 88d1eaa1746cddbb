"""A program whose steps alternate with others in benchmarks/peers.py: plain PyTorch, the plain Trainer, or pretrain.py.

python3 -m benchmarks.peers_run ADDRESS TASK [flags of pretrain.py]. TASK is JSON: `program`, and for the plain ones
`model` (fields of a LlamaConfig), `num_blocks` of a step, `block_length`, `num_steps`, `precision`. The plain Trainer
does what run_clm.py of transformers does with blocks that are ready: batches by the default collator, fused AdamW,
clipping, the linear schedule; it stands for that example, which no release of the library contains. In bf16 both
compute under autocast over fp32 weights, as `run_clm.py --bf16` does.
"""

import json
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks.started_run import start_run
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank
from pretraining.training.distributed.process_group import shutdown_process_group


class Turns(TrainerCallback):
    """Wait for the next turn at the end of each step, and send the CPU seconds of the process.

    Must be the last callback. The first process waits for all.
    """

    def __init__(self, address: str) -> None:
        self._connection: socket.socket | None = None
        if process_rank() == 0:
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(address)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Report the end of the step, and wait for the next turn."""
        if self._connection is not None:
            self._connection.send(struct.pack("d", time.process_time()))
            self._connection.recv(1)


def blocks_of(task: dict[str, Any], num_blocks: int) -> list[dict[str, torch.Tensor]]:
    """Random ids, which are their own labels."""
    ids = torch.randint(0, task["model"]["vocab_size"], (num_blocks, task["block_length"]))
    return [{"input_ids": block, "labels": block} for block in ids]


def train_in_a_loop(model: LlamaForCausalLM, task: dict[str, Any], turns: Turns) -> None:
    """Forward, backward, clipping and the fused AdamW of torch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = default_data_collator(blocks_of(task, task["num_blocks"]))
    for _ in range(task["num_steps"]):
        with torch.autocast("cpu", torch.bfloat16, enabled=task["precision"] == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.on_step_end()


def train_by_trainer(model: LlamaForCausalLM, task: dict[str, Any], turns: Turns) -> None:
    """The Trainer of transformers with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=task["precision"] == "bf16",
            per_device_train_batch_size=task["num_blocks"],
            max_steps=task["num_steps"],
            save_strategy="no",
            report_to=[],
        )
        blocks = blocks_of(task, 8 * task["num_blocks"])
        trainer = Trainer(model=model, args=arguments, train_dataset=blocks, data_collator=default_data_collator)
        trainer.add_callback(turns)
        trainer.train()


PLAIN = {"plain loop": train_in_a_loop, "plain Trainer": train_by_trainer}


def main(argv: Sequence[str]) -> None:
    """Train one step per turn."""
    address, task_text, *flags = [word for word in argv if not word.startswith("--local_rank")]
    task = json.loads(task_text)
    if task["program"] in PLAIN:
        set_seed(42)
        model = LlamaForCausalLM(LlamaConfig(**task["model"], use_cache=False))
        PLAIN[task["program"]](model.train(), task, Turns(address))
        return
    _, trainer = start_run(["-", *flags])
    trainer.add_callback(Turns(address))
    trainer.train()
    shutdown_process_group()


if __name__ == "__main__":
    run_program(main)
    sys.exit()
