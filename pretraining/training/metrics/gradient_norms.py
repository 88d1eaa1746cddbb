"""The norm of the gradient by group of parameters, from the norms that DeepSpeed sums to the total one."""

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor

from pretraining.training.distributed.deepspeed_gradients import watch_gradient_norms

# The groups, by a part of the names of their parameters in transformers' Llama.
GROUPS = {"embeddings": "embed_tokens.", "attention": "self_attn.", "mlp": "mlp.", "norms": "norm.", "head": "lm_head."}


def group_of(name: str) -> str:
    """The group of a parameter by its name; a bias belongs to its matrix, tied embeddings to the embeddings.

    >>> group_of("model.layers.0.self_attn.q_proj.weight")
    'attention'
    """
    return next(group for group, part in GROUPS.items() if part in name)


class GradientNorms:
    """Keeps the norm of the last step's gradient by parameter, and combines these norms only when it is asked to.

    Each is a number on the device: a step neither waits for it nor reads a gradient again. `engine` is what the Trainer
    trains, which is not an engine if a launcher has dropped the config; that is reported when training begins.
    """

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._engine = engine
        self._norms: dict[str, dict[int, Tensor]] = {}  # of this process's partitions, by id of the parameter
        self._groups: dict[int, str] = {}
        if isinstance(engine, DeepSpeedEngine):
            self._groups = {id(parameter): group_of(name) for name, parameter in engine.module.named_parameters()}
            watch_gradient_norms(engine, self._keep)

    def _keep(self, parameter: Tensor, norm: Tensor) -> None:
        self._norms.setdefault(self._groups[id(parameter)], {})[id(parameter)] = norm

    def metrics(self) -> dict[str, float]:
        """The norms of the last step before clipping, as keys of the log; called on every process.

        Their squares sum to that of `grad_norm`. Empty for a step that was skipped before its norms were computed: by
        fp16, and below stage 3.
        """
        if not self._groups:
            return {}
        zero, is_fp16 = self._engine.optimizer, self._engine.fp16_enabled()
        if zero.overflow and (is_fp16 or self._engine.zero_optimization_stage() < 3):
            return {}
        groups = [group for group in GROUPS if group in self._groups.values()]
        squares = torch.stack([self._sum_of_squares(group) for group in groups])
        dist.all_reduce(squares)
        norms = (squares.sqrt() / (zero.loss_scale if is_fp16 else 1.0)).tolist()
        return {f"grad_norm/{group}": norm for group, norm in zip(groups, norms, strict=True)}

    def _sum_of_squares(self, group: str) -> Tensor:
        """In fp64 on the device. An offloaded optimizer can have its norms on the host."""
        norms = [*self._norms.get(group, {}).values()] or [torch.zeros(())]  # below stage 3 not every process has some
        return torch.stack(norms).to(self._engine.device, torch.float64).square().sum()
