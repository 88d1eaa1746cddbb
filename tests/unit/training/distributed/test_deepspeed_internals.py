"""The installed DeepSpeed still has every private part that this suite uses."""

import inspect
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.ops
import pytest
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from pretraining.training.distributed import deepspeed_internals
from tests.conftest import run_fine
from tests.programs.launching import run_forked_fine

OF_STREAMS = ("reduce_and_partition_stream", "max_param_reduce_events", "parameter_offload", "offload_optimizer")
OF_STREAMS += (
    "contiguous_gradients",
    "ipg_buckets",
    "micro_step_id",
    "__param_id_to_grad_partition",
)


def test_the_review_was_of_the_installed_version() -> None:
    assert f"deepspeed {version('deepspeed')})" in (deepspeed_internals.__doc__ or ""), "review each function first"


@pytest.mark.parametrize("name", ["_get_zero_param_shapes"])
def test_methods_of_the_engine(name: str) -> None:
    assert callable(getattr(DeepSpeedEngine, name))


@pytest.mark.parametrize("name", ["step", "reduce_independent_p_g_buckets_and_remove_grads"])
def test_methods_of_the_optimizer(name: str) -> None:
    assert callable(getattr(DeepSpeedZeroOptimizer_Stage3, name))


def test_attributes_that_are_set_while_it_runs() -> None:
    zero = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    for name in ("fp32_partitioned_groups_flat", "grad_partitions_flat_buffer", *OF_STREAMS):
        assert f"self.{name}" in zero
    for name in ("cpu_offload", "averaged_gradients"):
        assert f"self.{name} = " in inspect.getsource(DeepSpeedZeroOptimizer)
    assert "self.__allgather_stream = " in inspect.getsource(DeepSpeedZeRoOffload)
    assert "bucket.buffer = " in zero
    assert ".ds_tensor = " in inspect.getsource(partition_parameters)
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_signatures_are_inspected_once() -> None:
    """Of the functions that each module has, and of that of the linear layers; calls give the same as before."""
    source = inspect.getsource(DeepSpeedZeRoOffload)
    assert "module.pre_bwd_fn = " in source
    assert "module.post_bwd_fn = " in source

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(values: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
            return values * factor

        @staticmethod
        def setup_context(context: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG004
            context.factor = inputs[1]

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            return gradient * context.factor, None

    model = torch.nn.Sequential(torch.nn.Identity())
    model[0].pre_bwd_fn = Doubled
    deepspeed_internals.remember_signatures(model)
    functions = (Doubled, deepspeed_internals.LinearFunctionForZeroStage3)
    assert all(inspect.signature(function.forward) is function.forward.__signature__ for function in functions)
    values = torch.ones(2, requires_grad=True)
    Doubled.apply(values).sum().backward()
    assert torch.equal(values.grad, torch.full([2], 2.0))


def test_muon_is_imported_without_the_compiler() -> None:
    """In a separate process, since another test may have imported either."""
    code = """
import sys
from deepspeed.runtime import compiler
from pretraining.training.distributed.deepspeed_internals import import_muon_without_compiler
found = compiler.compile
import_muon_without_compiler()
assert compiler.compile is found
assert "deepspeed.runtime.zero.muon.original_muon" in sys.modules
assert "torch._inductor" not in sys.modules
"""
    run_fine(sys.executable, "-c", code)


def test_streams_wait_for_each_other_where_the_host_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 gradients are checked for overflows in the stream that reduces them; one process adds in the other."""
    waits: list[tuple[str, str]] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            waits.append((self.name, other.name))

    computing, reducing = Stream("computing"), Stream("reducing")
    accelerator = SimpleNamespace(current_stream=lambda: computing)
    monkeypatch.setattr(deepspeed_internals, "get_accelerator", lambda: accelerator)
    deepspeed_internals._wait_on_device(reducing)
    reducing.synchronize()
    assert waits == [("computing", "reducing"), ("reducing", "computing")]


FILL = """
import os
from types import SimpleNamespace
import deepspeed, torch
from pretraining.training.distributed import deepspeed_internals
deepspeed_internals.disable_shm_op()
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
deepspeed.init_distributed("gloo", verbose=False)
plain = torch.nn.Linear(3, 5)
with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 1, "zero_optimization": {"stage": 3}}):
    whole = torch.nn.Linear(3, 5)
for number, weight in enumerate((plain.weight, whole.weight, whole.weight)):
    if number == 2:
        deepspeed_internals.PartitionedParamStatus = SimpleNamespace(AVAILABLE=None)
    values = torch.randn(5, 3)
    deepspeed_internals.fill_parameter(weight, values)
    with deepspeed.zero.GatheredParameters([weight], enabled=number > 0):
        assert torch.equal(weight.detach(), values), number
print("filled")
torch.distributed.destroy_process_group()  # its threads at exit would abort the process now and then
"""


def test_a_parameter_is_filled_through_its_partition_or_a_gather(tmp_path: Path) -> None:
    """In a separate process, which joins a process group; what is on disk is gathered, which here is pretended."""
    (tmp_path / "fill.py").write_text(FILL)
    assert "filled" in run_forked_fine(sys.executable, tmp_path / "fill.py").stdout
