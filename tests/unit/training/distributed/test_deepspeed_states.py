"""The storages that are measured are still where DeepSpeed 0.19.8 has them; real runs are in test_model_states.py."""

import inspect

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from pretraining.training.distributed.deepspeed_states import _storages

ATTRIBUTES = {
    DeepSpeedZeroOptimizer_Stage3: ["grad_partitions_flat_buffer", "fp32_partitioned_groups_flat"],
    BF16_Optimizer: ["fp32_groups_gradients_flat", "fp32_groups_flat_partition"],
    DeepSpeedZeroOptimizer: [
        *("averaged_gradients", "all_grad_tensors", "accumulated_grads_in_cpu", "single_partition_of_fp32_groups"),
        *("param_buffer_of_bit16_for_cpu_offload_groups", "use_grad_accum_attribute", "partition_gradients"),
    ],
}


@pytest.mark.parametrize("optimizer", ATTRIBUTES)
def test_attributes_of_the_optimizers(optimizer: type) -> None:
    source = inspect.getsource(optimizer)
    assert [name for name in ATTRIBUTES[optimizer] if f"self.{name}" not in source] == []


def test_the_second_copy_of_a_parameter() -> None:
    assert "param.ds_secondary_tensor = None" in inspect.getsource(partition_parameters)


def test_a_storage_counts_once() -> None:
    whole = torch.zeros(10)
    assert sum(_storages([whole, whole[3:], whole[:2].view(2, 1), torch.zeros(3)]).values()) == 4 * 13
