from dataclasses import replace

from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import MachineSpec
from pretraining.planning.suggestions import largest_micro_batch
from pretraining.system.gpus import find_gpu_type
from pretraining.training.config.startup_log import gpu_lines
from tests.unit.planning.layouts import layout_of

H100 = MachineSpec("1 x NVIDIA H100 80GB HBM3", 1, 1, find_gpu_type("h100").memory_bytes, find_gpu_type("h100"), None)
BATCH = GlobalBatch(4096, 1, 1024, 1)


def test_an_unlisted_gpu_has_no_mfu_which_is_said_once() -> None:
    layout = layout_of("llama2_7b")
    assert list(gpu_lines(layout, H100, BATCH)) == []
    (line,) = gpu_lines(layout, replace(H100, name="1 x NVIDIA GB200", gpu_type=None), BATCH)
    assert line == "MFU: not logged, because the peak of this GPU is not listed (1 x NVIDIA GB200)"
    assert list(gpu_lines(layout, replace(H100, gpu_bytes=None, gpu_type=None), BATCH)) == []


def test_an_offloaded_run_is_told_what_it_copies_and_how_to_copy_less() -> None:
    layout = replace(layout_of("llama2_7b"), checkpoint_every=1, offload_optimizer=True, grad_accum_dtype="bf16")
    (line,) = gpu_lines(layout, H100, BATCH)
    found = largest_micro_batch(layout, H100, BATCH)
    assert found is not None
    assert line == (
        "offload: 27.0 GB of gradient sums are copied per micro step, whatever its number of blocks; use "
        f"--per_device_train_batch_size 8 ({found.needs})"
    )
    largest = replace(layout, micro_batch_blocks=8)
    (line,) = gpu_lines(largest, H100, replace(BATCH, micro_batch_blocks=8, gradient_accumulation_steps=128))
    assert line.endswith("of blocks; more of them would not fit or help")
