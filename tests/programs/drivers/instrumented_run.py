"""A training run that also keeps its first weights and last logits; takes pretrain.py's flags and launchers."""

import sys

import deepspeed
import torch

from benchmarks.started_run import started_trainer
from pretraining.training.callbacks.export import export_model
from pretraining.training.distributed.process_group import shutdown_process_group


def main() -> None:
    trainer = started_trainer(sys.argv[1:])
    run_dir, is_first = trainer.run_config.run_dir, trainer.is_world_process_zero()
    parameters = dict(trainer.model.named_parameters())
    assert all(parameter.numel() == 0 for parameter in parameters.values()), "a rank holds whole parameters"
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        if is_first:
            weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            torch.save(weights, run_dir / "first_weights.pt")

    trainer.train()
    block = trainer.eval_dataset[0]["input_ids"][None]
    trainer.model_wrapped.eval()
    with torch.no_grad():
        logits = trainer.model_wrapped(input_ids=block).logits
    if is_first:
        torch.save({"block": block, "logits": logits}, run_dir / "logits.pt")
    export_model(trainer, run_dir / "model")
    shutdown_process_group()


if __name__ == "__main__":
    main()
