"""A training run that also writes what bytes its weights, gradients and optimizer really take, on each rank.

It takes pretrain.py's flags. RUN/model_states-RANK.json has the bytes of the storages, each counted once, and what the
plan says of them.
"""

import dataclasses
import json
import sys

from benchmarks.started_run import started_trainer
from pretraining.planning.footprint import footprint
from pretraining.planning.model_states import model_states
from pretraining.training.distributed.deepspeed_internals import allocated_states
from pretraining.training.distributed.process_group import shutdown_process_group


def main() -> None:
    trainer = started_trainer(sys.argv[1:])
    layout = trainer.run_config.layout
    trainer.train()
    parts, buckets = footprint(layout).on_gpu, trainer.model_wrapped.optimizer.ipg_buckets.values()
    found = {
        "allocated": allocated_states(trainer.model_wrapped),
        "planned": dataclasses.asdict(model_states(layout)),
        "planned_bucket": next((part.num_bytes for part in parts if part.name == "reduce bucket"), 0),
        "bucket": [0 if bucket.buffer is None else bucket.buffer.nbytes for bucket in buckets],
    }
    (trainer.run_config.run_dir / f"model_states-{trainer.args.process_index}.json").write_text(json.dumps(found))
    shutdown_process_group()


if __name__ == "__main__":
    main()
