"""The global batch, in tokens or in blocks, divided among processes."""

from dataclasses import replace

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.planning.global_batch import GlobalBatch, resolve_global_batch
from tests.unit.planning.layouts import layout_of

FLAGS = ["--deepspeed", "ds_config.json", "--per_device_train_batch_size", "2"]
HEADS = (8, 8)


def batch_of(*words: str, num_processes: int = 4) -> GlobalBatch:
    return resolve_global_batch(parse_pretrain_arguments("", [*FLAGS, *words]), HEADS, 512, num_processes)


@pytest.mark.guarantee("A global batch in blocks trains as the same one in tokens.")
@pytest.mark.parametrize("num_processes", [1, 2, 4, 8])
def test_blocks_and_tokens_give_the_same_batch(num_processes: int) -> None:
    in_blocks = batch_of("--global_batch_blocks", "48", num_processes=num_processes)
    assert in_blocks == batch_of("--global_batch_tokens", str(48 * 512), num_processes=num_processes)
    assert (in_blocks.blocks, in_blocks.tokens) == (48, 24_576)
    assert in_blocks.flag == "--global_batch_blocks 48"


def test_blocks_that_do_not_divide_are_rejected_with_those_that_do() -> None:
    with pytest.raises(UserError) as caught:
        batch_of("--global_batch_blocks", "20")
    assert str(caught.value) == (
        "--global_batch_blocks 20: is not a multiple of 8 = 2 blocks (--per_device_train_batch_size) x 4 processes; "
        "use 16 or 24, or processes and --per_device_train_batch_size that divide its 20 blocks"
    )
    with pytest.raises(
        UserError, match="follows from --global_batch_blocks 16; remove it, or add --global_batch_blocks"
    ):
        batch_of("--global_batch_blocks", "16", "--gradient_accumulation_steps", "2")


def test_both_are_rejected_and_none_leaves_the_other() -> None:
    with pytest.raises(UserError, match="--global_batch_tokens 8192 --global_batch_blocks 16: exclude each other"):
        batch_of("--global_batch_blocks", "16", "--global_batch_tokens", "8192")
    assert batch_of("--global_batch_blocks", "none").tokens == 4_194_304
    accumulated = batch_of("--global_batch_tokens", "none", "--gradient_accumulation_steps", "3")
    assert (accumulated.blocks, accumulated.flag) == (24, "--gradient_accumulation_steps 3")
    assert accumulated.flag_for(48) == "--gradient_accumulation_steps 6"


def test_another_layout_has_the_same_blocks_per_step() -> None:
    """On other processes, two of which share each block, and in other micro batches."""
    batch = GlobalBatch(4096, 1, 128, 4, sequence_parallel_size=2, flag="--global_batch_blocks 256")
    layout = replace(layout_of("llama2_7b", num_gpus=8), sequence_parallel_size=2, micro_batch_blocks=16)
    divided = batch.divided_for(layout)
    assert divided == GlobalBatch(4096, 16, 4, 8, sequence_parallel_size=2)
    assert (divided.blocks, divided.flag) == (batch.blocks, batch.flag)
