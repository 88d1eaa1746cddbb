"""A training run that also writes what bytes its weights, gradients and optimizer really take, and what it sends.

It takes pretrain.py's flags. RUN/model_states-RANK.json has the bytes of the storages, each counted once, what the plan
says of them, and the bytes of the messages of the last step, by the processes that they are among.
"""

import dataclasses
import json
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from benchmarks.started_run import started_trainer
from pretraining.planning.footprint import footprint
from pretraining.planning.model_states import model_states
from pretraining.planning.zero.traffic import sent_per_step
from pretraining.training.distributed.deepspeed_states import allocated_states
from pretraining.training.distributed.process_group import shutdown_process_group

SMALL = 64  # numbers in a message of norms, losses and flags


class States(TrainerCallback):
    """The states after a micro step that is not the last of its step, and the bytes sent in the last complete step."""

    def __init__(self, engine_of: Any) -> None:
        self._engine_of, self.found, self.sent = engine_of, {}, Counter()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.found = allocated_states(self._engine_of())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        watch_buckets(self._engine_of().optimizer)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        SENT.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.sent = Counter(SENT)


SENT: Counter[int] = Counter()  # bytes by the number of processes
BUCKETS: list[int] = []


def count_messages() -> None:
    """Count what each collective of torch sends with a ring; DeepSpeed calls them all by their module."""
    for name, factor in (("all_gather_into_tensor", 1), ("reduce_scatter_tensor", 1), ("all_reduce", 2)):
        setattr(dist, name, counted(getattr(dist, name), factor))


def counted(call: Any, factor: int) -> Any:
    def count(*args: Any, **options: Any) -> Any:
        whole = max((value for value in (*args, *options.values()) if torch.is_tensor(value)), key=torch.numel)
        size = dist.get_world_size(options.get("group"))
        if whole.numel() > SMALL:
            SENT[size] += factor * whole.nbytes * (size - 1) / size
        return call(*args, **options)

    return count


def main() -> None:
    count_messages()
    trainer = started_trainer(sys.argv[1:])
    layout, batch = trainer.run_config.layout, trainer.run_config.batch
    states = States(lambda: trainer.model_wrapped)
    trainer.add_callback(states)
    trainer.train()
    parts = footprint(layout).on_gpu
    found = {
        "allocated": states.found,
        "planned": dataclasses.asdict(model_states(layout)),
        "planned_bucket": next((part.num_bytes for part in parts if part.name == "reduce bucket"), 0),
        "bucket": BUCKETS or bucket_bytes(trainer.model_wrapped.optimizer),
        "sent": dict(states.sent),
        "planned_sent": dataclasses.asdict(sent_per_step(layout, batch.gradient_accumulation_steps)),
    }
    (trainer.run_config.run_dir / f"model_states-{trainer.args.process_index}.json").write_text(json.dumps(found))
    shutdown_process_group()


def bucket_bytes(zero: Any) -> list[int]:
    """Bytes of the buckets of stage 3; BF16_Optimizer has none."""
    buckets = getattr(zero, "ipg_buckets", {}).values()
    return [0 if bucket.buffer is None else bucket.buffer.nbytes for bucket in buckets] or [0]


def watch_buckets(zero: Any) -> None:
    """Take the size of the buckets of stages 1 and 2 before they are released, after each backward."""
    if not hasattr(zero, "_release_ipg_buffers"):
        return
    release = zero._release_ipg_buffers

    def measured() -> None:
        found = [sum(tensor.nbytes for tensor in bucket.buffer) for bucket in zero.ipg_buckets.values()]
        BUCKETS[:] = found if any(found) else BUCKETS
        release()

    zero._release_ipg_buffers = measured


if __name__ == "__main__":
    main()
