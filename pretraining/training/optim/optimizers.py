"""The optimizers to choose from: what each keeps per parameter, and what of the model it works on.

All of them train the same in one process and in many, and go on after a resume as if never stopped; tests hold them to
it. torchao's AdamW8bit does too, but keeps fp32 moments, without a word, for a partition whose size is no multiple of
256, and compiles its step.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from pretraining.cli.arguments.run import OptimizerName
from pretraining.errors import UserError
from pretraining.training.optim.adamw_bf16 import AdamWBf16
from pretraining.training.optim.muon import MuonWithAdamW


def make_optimizer(
    name: OptimizerName, arguments: TrainingArguments, model: PreTrainedModel, *, weight_decay_on_norms: bool
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a model that ZeRO-3 has partitioned."""
    decay = {"weight_decay": arguments.weight_decay, "on_norms": weight_decay_on_norms}
    adam = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
    adamw, fused = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if name == "adamw":
        return adamw(decay_groups(model, **decay), **fused)
    if name == "adamw_bf16":
        return AdamWBf16(decay_groups(model, **decay), **adam)
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit  # not required: 43 MB, most of it for other CUDA versions

        return AdamW8bit(decay_groups(model, **decay), **adam)
    return MuonWithAdamW(muon_groups(model, **decay), **fused)


def prepare_optimizer(name: OptimizerName, config: dict[str, Any]) -> None:
    """Before anything is loaded: see that it stays the optimizer when it is offloaded.

    For an offloaded optimizer, whichever it is, accelerate takes DeepSpeed's CPU Adam unless the config says otherwise.
    torch's fused AdamW is as fast on a host (docs/benchmarks/step_settings.md), and nothing has to be compiled for it.

    Raises:
        UserError: when the DeepSpeed config asks for CPU Adam.
    """
    if config.setdefault("zero_force_ds_cpu_optimizer", False) and name != "adamw":
        raise UserError(
            f"--optim {name}: zero_force_ds_cpu_optimizer is true in the DeepSpeed config, which puts DeepSpeed's CPU "
            "Adam in its place; remove that, or give --optim adamw"
        )


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Weight decay, betas and whatever else flags decide of each group of parameters; not the learning rate."""
    left_out = ("params", "lr", "initial_lr")
    return [{name: value for name, value in group.items() if name not in left_out} for group in optimizer.param_groups]


def decay_groups(model: PreTrainedModel, *, weight_decay: float, on_norms: bool) -> list[dict[str, Any]]:
    """Matrices and embeddings, then norms and biases, which have no weight decay unless asked."""
    groups = []
    for is_vector in (False, True):
        # ds_shape is the shape in the layer; what ZeRO-3 leaves there is empty.
        params = [parameter for parameter in model.parameters() if (len(parameter.ds_shape) == 1) == is_vector]
        groups.append({"params": params, "weight_decay": weight_decay if on_norms or not is_vector else 0.0})
    return groups


def muon_groups(model: PreTrainedModel, *, weight_decay: float, on_norms: bool) -> list[dict[str, Any]]:
    """As `decay_groups`, and in a third the matrices of the layers; Muon is not for embeddings and head."""
    around = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    matrices, vectors = decay_groups(model, weight_decay=weight_decay, on_norms=on_norms)
    of_layers = [parameter for parameter in matrices["params"] if id(parameter) not in around]
    rest = [parameter for parameter in matrices["params"] if id(parameter) in around]
    return [
        {**matrices, "params": rest, "muon": False},  # first: its learning rate is the one in the log
        {**vectors, "muon": False},
        {**matrices, "params": of_layers, "muon": True},
    ]
