"""A training run that also keeps its first weights and last logits; takes pretrain.py's flags and launchers."""

import sys

import deepspeed
import torch

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.data.mixture import load_mixture
from pretraining.training.build import make_trainer
from pretraining.training.callbacks.export import export_model
from pretraining.training.config.run_config import resolve_run_config
from pretraining.training.config.run_identity import claim_output_dir
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
    is_first = trainer.is_world_process_zero()
    if is_first:
        start_run_folder(plan, trainer)

    parameters = dict(trainer.model.named_parameters())
    assert all(parameter.numel() == 0 for parameter in parameters.values()), "a rank holds whole parameters"
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        if is_first:
            weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            torch.save(weights, plan.run_dir / "first_weights.pt")

    trainer.train()
    block = trainer.eval_dataset[0]["input_ids"][None]
    trainer.model_wrapped.eval()
    with torch.no_grad():
        logits = trainer.model_wrapped(input_ids=block).logits
    if is_first:
        torch.save({"block": block, "logits": logits}, plan.run_dir / "logits.pt")
    export_model(trainer, plan.run_dir / "model")
    shutdown_process_group()


if __name__ == "__main__":
    main()
