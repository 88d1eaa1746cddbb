"""The bytes that DeepSpeed's optimizers hold, by the names of the plan (deepspeed 0.19.8).

Private parts of its three optimizers; the unit test looks for each of them in the installed version.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from pretraining.training.distributed.deepspeed_internals import master_weights, own_partition


def allocated_states(engine: DeepSpeedEngine) -> dict[str, int]:
    """Measure the bytes of the storages that ZeRO holds after a micro step, by the names of `ModelStates`.

    Between two steps, stages 1 and 2 have no gradients, and hpZ no second copy.
    """
    zero, parameters = engine.optimizer, list(engine.module.parameters())
    if engine.zero_optimization_stage() < 3:
        return _allocated_flat_groups(zero, parameters)
    weights = _storages(map(own_partition, parameters))
    master = _storages(master_weights(zero))
    whole = _storages(parameter.data for parameter in parameters if parameter.data.numel())
    copies = _storages(flat.grad for flat in master_weights(zero) if flat.grad is not None)
    second = (parameter.ds_secondary_tensor for parameter in parameters)
    return {
        "weights": sum(weights.values()),
        "whole_weights": sum(dict(whole.items() - weights.items()).values()),
        "second_copy": sum(_storages(copy for copy in second if copy is not None).values()),
        "gradients": sum(_storages([zero.grad_partitions_flat_buffer]).values()),
        "gradient_copies": sum(copies.values()),
        "master_weights": sum(dict(master.items() - weights.items()).values()),
        "moments": sum(_storages(_moments(zero)).values()),
        "updated_weights": 0,
    }


def _allocated_flat_groups(zero: Any, parameters: Sequence[Tensor]) -> dict[str, int]:
    """The same of stages 1 and 2 (runtime/bf16_optimizer.py, runtime/zero/stage_1_and_2.py)."""
    master, offloads = master_weights(zero), getattr(zero, "cpu_offload", False)
    return {
        "weights": sum(_storages(parameter.data for parameter in parameters).values()),
        "whole_weights": 0,
        "second_copy": 0,
        "gradients": sum(_storages(_gradients_of_flat_groups(zero, parameters)).values()),
        "gradient_copies": sum(_storages(flat.grad for flat in master).values()) if offloads else 0,
        "master_weights": sum(_storages(master).values()),
        "moments": sum(_storages(_moments(zero)).values()),
        "updated_weights": sum(_storages(zero.param_buffer_of_bit16_for_cpu_offload_groups).values())
        if offloads
        else 0,
    }


def _gradients_of_flat_groups(zero: Any, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """Sums over micro steps: flat, by parameter in fp32, in host memory, or in place of the gradients."""
    if hasattr(zero, "fp32_groups_gradients_flat"):
        yield from zero.fp32_groups_gradients_flat
        return
    if zero.partition_gradients:
        yield from (group.flat_partition for group in zero.averaged_gradients.values() if group is not None)
        yield from (gradient for group in zero.all_grad_tensors.values() for gradient in group or ())
        yield from getattr(zero, "accumulated_grads_in_cpu", {}).values()
        return
    for parameter in parameters:
        found = parameter.grad_accum if zero.use_grad_accum_attribute else parameter.grad
        yield from () if found is None else (found,)


def _moments(zero: Any) -> Iterator[Tensor]:
    for state in zero.optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Storages by address, with their bytes."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
