"""The optimizers of --optim and their parameter groups.

All of them train the same in one process and in many, and resume exactly; tests check both. torchao's AdamW8bit does
too, but silently keeps fp32 moments for a partition whose size is not a multiple of 256, and compiles its step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from pretraining.cli.arguments.run import OptimizerName
from pretraining.errors import UserError
from pretraining.planning.footprint import ADAMW_CHUNK, FUSED_ADAMW_CHUNK
from pretraining.training.optim.muon import MuonWithAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    name: OptimizerName, arguments: TrainingArguments, model: PreTrainedModel, *, weight_decay_on_norms: bool
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a model, which ZeRO-3 has partitioned; muon needs ZeRO-3."""
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
        from bitsandbytes.optim import AdamW8bit  # optional: 43 MB, most of it for other CUDA versions

        return AdamW8bit(decay_groups(model, **decay), **adam)
    return MuonWithAdamW(muon_groups(model, **decay), **fused)


def prepare_optimizer(name: OptimizerName, config: dict[str, Any]) -> None:
    """Keep the optimizer when it is offloaded; call it before anything is loaded.

    accelerate replaces an offloaded optimizer by DeepSpeed's CPU Adam unless the config forbids it. torch's fused AdamW
    is as fast on a host (docs/benchmarks/step_settings.md), and needs no compiler.

    Raises:
        UserError: when the DeepSpeed config asks for CPU Adam.
    """
    if config.setdefault("zero_force_ds_cpu_optimizer", False) and name != "adamw":
        raise UserError(
            f"--optim {name}: zero_force_ds_cpu_optimizer is true in the DeepSpeed config, which puts DeepSpeed's CPU "
            "Adam in its place; remove it, or use --optim adamw"
        )


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group that flags decide, e.g. weight decay and betas; not the learning rate."""
    excluded = ("params", "lr", "initial_lr")
    return [{name: value for name, value in group.items() if name not in excluded} for group in optimizer.param_groups]


def decay_groups(model: PreTrainedModel, *, weight_decay: float, on_norms: bool) -> list[dict[str, Any]]:
    """Two groups: matrices and embeddings; norms and biases, which have weight decay only if `on_norms`."""
    groups = []
    for is_vector in (False, True):
        params = [parameter for parameter in model.parameters() if (len(_shape(parameter)) == 1) == is_vector]
        groups.append({"params": params, "weight_decay": weight_decay if on_norms or not is_vector else 0.0})
    return groups


def _shape(parameter: Tensor) -> torch.Size:
    """The shape in the layer; the parameter that ZeRO-3 leaves there is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)


def muon_groups(model: PreTrainedModel, *, weight_decay: float, on_norms: bool) -> list[dict[str, Any]]:
    """`decay_groups`, with the matrices of the layers as a third group; Muon is not for embeddings and head."""
    around = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    matrices, vectors = decay_groups(model, weight_decay=weight_decay, on_norms=on_norms)
    of_layers = [parameter for parameter in matrices["params"] if id(parameter) not in around]
    rest = [parameter for parameter in matrices["params"] if id(parameter) in around]
    return [
        {**matrices, "params": rest, "muon": False},  # first: its learning rate is the one in the log
        {**vectors, "muon": False},
        {**matrices, "params": of_layers, "muon": True},
    ]


class AdamWBf16(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with bf16 moments, 4 bytes per parameter instead of 8.

    DeepSpeed's own `bf16_optimizer_states` makes the master weights bf16 as well, which rounds away a step of 3e-4 of a
    weight; here they stay fp32. Each update is computed in fp32 and from the moments before rounding. Rounding is to
    the nearest, so that runs do not depend on resumes or the number of processes.
    """

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load each moment as bf16: torch would cast all of them to the dtype of their parameters first.

        That is fp32, 4 bytes per parameter more than the plan has for the GPU, until the last moment is cast back.
        """
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        saved = state_dict["state"]
        others = {
            number: {name: value for name, value in state.items() if name not in MOMENTS}
            for number, state in saved.items()
        }
        super().load_state_dict({**state_dict, "state": others})
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for number, parameter in zip(numbers, parameters, strict=True):
            for name in saved.get(number, {}).keys() & set(MOMENTS):
                self.state[parameter][name] = saved[number][name].to(parameter.device, torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        update, size = (_fused_adamw, FUSED_ADAMW_CHUNK) if parameter.is_cuda else (_adamw, ADAMW_CHUNK)
        whole = (parameter, parameter.grad, *(state[name] for name in MOMENTS))
        for chunk in zip(*(tensor.view(-1).split(size) for tensor in whole), strict=True):
            update(*chunk, num_steps=state["step"].item(), group=group)


def _adamw(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *, num_steps: float, group: dict[str, Any]
) -> None:
    beta1, beta2 = group["betas"]
    exact_mean = mean.float().lerp_(gradient, 1 - beta1)
    exact_square = square.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    mean.copy_(exact_mean)
    square.copy_(exact_square)
    denominator = exact_square.div_(1 - beta2**num_steps).sqrt_().add_(group["eps"])
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.addcdiv_(exact_mean, denominator, value=-group["lr"] / (1 - beta1**num_steps))


def _fused_adamw(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *, num_steps: float, group: dict[str, Any]
) -> None:
    """`_adamw` in one kernel of torch between two casts of the moments.

    It moves 52 bytes per parameter in place of 108 (arithmetic), and rounds in another order.
    """
    exact_mean, exact_square = mean.float(), square.float()
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        *([weight], [gradient], [exact_mean], [exact_square], []),
        [torch.full((), num_steps, device=weight.device)],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
    mean.copy_(exact_mean)
    square.copy_(exact_square)
