"""A training run that also writes what bytes its weights, gradients and optimizer really take, on each rank.

It takes pretrain.py's flags. RUN/model_states-RANK.json has the bytes of the storages, each counted once, and what the
plan says of them.
"""

import dataclasses
import json
import sys

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.data.mixture import load_mixture
from pretraining.planning.model_states import model_states
from pretraining.training.build import make_trainer
from pretraining.training.config.run_config import resolve_run_config
from pretraining.training.config.run_identity import claim_output_dir
from pretraining.training.distributed.deepspeed_internals import allocated_states
from pretraining.training.distributed.process_group import init_process_group, shutdown_process_group
from pretraining.training.run import quiet_libraries, start_run_folder
from pretraining.training.stopping.request import StopRequest


def main() -> None:
    arguments = parse_pretrain_arguments("", sys.argv[1:])
    quiet_libraries()
    plan = resolve_run_config(arguments, load_mixture(arguments.data.dataset, revision=None))
    claim_output_dir(plan)
    init_process_group(timeout_seconds=600)
    trainer = make_trainer(plan, StopRequest())
    if trainer.is_world_process_zero():
        start_run_folder(plan, trainer)
    trainer.train()
    found = {
        "allocated": allocated_states(trainer.model_wrapped),
        "planned": dataclasses.asdict(model_states(plan.layout)),
        "planned_bucket": plan.layout.zero.reduce_bucket_size * plan.layout.weight_bytes,
        "bucket": [bucket.buffer.nbytes for bucket in trainer.model_wrapped.optimizer.ipg_buckets.values()],
    }
    (plan.run_dir / f"model_states-{trainer.args.process_index}.json").write_text(json.dumps(found))
    shutdown_process_group()


if __name__ == "__main__":
    main()
