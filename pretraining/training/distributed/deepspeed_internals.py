"""All uses of DeepSpeed's private parts, each with its reason, so that an upgrade is one review (deepspeed 0.19.8).

Gradient norms are in deepspeed_gradients.py, checkpoints in deepspeed_checkpoints.py, storages in deepspeed_states.py.
The unit test of each module looks for each part in the installed version.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus, is_zero_param
from torch import Tensor

from pretraining.planning.layout import MAX_MESSAGES_IN_FLIGHT


def disable_shm_op() -> None:
    """Disable a C++ op for inference, which would be compiled for a minute, or fail without a compiler."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def import_muon_without_compiler() -> None:
    """Import DeepSpeed's Muon, which ZeRO-3 looks for and no run has, without the compiler of its decorators.

    Those would import it at each start, for 1.1 s on a CPU (runtime/zero/muon/original_muon.py).
    """
    compile_function = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compile_function


def parameter_shapes(engine: DeepSpeedEngine) -> list[Mapping[str, torch.Size]]:
    """Shapes of the parameters of each flat buffer by name, as each checkpoint has them (runtime/engine.py)."""
    return engine._get_zero_param_shapes()


def master_weights(zero: Any) -> Sequence[Tensor]:
    """The flat fp32 weights of this process, keys of the optimizer's state.

    By sub-group in stage 3, by parameter group below it (runtime/zero/stage3.py, stage_1_and_2.py, bf16_optimizer.py).
    """
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return next(getattr(zero, name) for name in names if hasattr(zero, name))


def own_partition(parameter: Tensor) -> Tensor:
    """This process's partition of a parameter, padding included (runtime/zero/partition_parameters.py)."""
    return parameter.ds_tensor


@torch.no_grad()
def fill_parameter(parameter: Tensor, values: Tensor) -> None:
    """Write the values of a whole tensor into a parameter, each process into its partition; called on every process.

    A partition that is on disk (nvme) is written through a gather (runtime/zero/partition_parameters.py).
    """
    if not is_zero_param(parameter):
        parameter.copy_(values)
        return
    partition = own_partition(parameter)
    if partition.status is not PartitionedParamStatus.AVAILABLE:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(values)
        return
    start = dist.get_rank(parameter.ds_process_group) * partition.numel()
    own = values.reshape(-1)[start : start + partition.numel()]
    partition[: len(own)].copy_(own)
    partition[len(own) :].zero_()
    parameter.ds_secondary_tensor = None  # hpZ's copy of the values before, from which the weights would be gathered


def avoid_host_waits(engine: DeepSpeedEngine) -> None:
    """Have the GPU order what DeepSpeed has the host wait for (runtime/zero/stage3.py, parameter_offload.py).

    After each backward the host waits until all gradients are reduced. Here the stream that uses them waits. An
    offloaded optimizer reads them on the host, so there the host still waits. Below stage 3 nothing is overlapped.
    """
    if not isinstance(engine, DeepSpeedEngine):
        return  # a launcher has dropped the config, which is reported when training begins
    if engine.zero_optimization_stage() < 3:
        return
    zero = engine.optimizer
    has_streams = zero.reduce_and_partition_stream is not None  # None on a CPU
    if has_streams:
        zero.step = partial(_step_then_gather, zero, zero.step)
        zero.max_param_reduce_events = MAX_MESSAGES_IN_FLIGHT - 1
    if zero.offload_optimizer:
        return
    if has_streams:
        _wait_on_device(zero.reduce_and_partition_stream)
    if dist.get_world_size() == 1:
        _add_gradients_in_place(zero)


def remember_signatures(model: torch.nn.Module) -> None:
    """Inspect DeepSpeed's autograd functions once, two per module (runtime/zero/parameter_offload.py, linear.py).

    torch looks at the signature of each at every call, which takes 25 us more: of 32 layers 25 ms per forward.
    """
    hooks = [getattr(module, name, None) for module in model.modules() for name in ("pre_bwd_fn", "post_bwd_fn")]
    for function in (LinearFunctionForZeroStage3, *filter(None, hooks)):
        function.forward.__signature__ = inspect.signature(function.forward)


def forget_gradients_after_step(engine: DeepSpeedEngine) -> None:
    """Have stages 1 and 2 with an offloaded optimizer forget a step that they skip (runtime/zero/stage_1_and_2.py).

    Its sums in fp32, with the NaN or Inf, would stay, and the gradients of all later steps be added to them.
    """
    if isinstance(engine, DeepSpeedEngine) and engine.zero_optimization_stage() in (1, 2):
        zero = engine.optimizer
        if getattr(zero, "cpu_offload", False):
            zero.step = partial(_step_then_forget, zero, zero.step)


def _step_then_forget(zero: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = step(*args, **kwargs)
    zero.averaged_gradients.clear()
    return result


def _wait_on_device(stream: Any) -> None:
    """Let streams wait for each other where the host would wait: fp16 looks for overflows in this one."""

    def synchronize() -> None:
        current = get_accelerator().current_stream()
        current.wait_stream(stream)
        stream.wait_stream(current)

    stream.synchronize = synchronize


def _step_then_gather(zero: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let the stream that gathers weights wait for the step that writes them.

    DeepSpeed itself orders them only by the waits of its throughput timer, which is off.
    """
    result = step(*args, **kwargs)
    gathers = zero.parameter_offload._DeepSpeedZeRoOffload__allgather_stream
    gathers.wait_stream(get_accelerator().current_stream())
    return result


def _add_gradients_in_place(zero: Any) -> None:
    """Add each gradient of a single process to its sum at once: its partition is the whole.

    DeepSpeed copies the gradients to a bucket, concatenates them, divides them by one, sends them to itself, casts and
    adds them: 16 bytes per parameter and micro step for sums in bf16, 26 in fp32. Only the addition is left, 6 and 10.
    """
    zero.contiguous_gradients = False
    for bucket in zero.ipg_buckets.values():
        bucket.buffer = None
    zero.reduce_independent_p_g_buckets_and_remove_grads = partial(_add_gradient, zero)


@torch.no_grad()
def _add_gradient(zero: Any, parameter: Tensor) -> None:
    total = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition[parameter.ds_id]
    gradient = parameter.grad.view(-1)
    if zero.micro_step_id == 0:
        total.copy_(gradient)
    else:
        total.add_(gradient)
    parameter.grad = None
