"""The global batch of a run from its flags."""

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.errors import UserError
from pretraining.planning.global_batch import GlobalBatch, plan_global_batch
from pretraining.training.model.fields import Heads


def plan_batch(arguments: PretrainArguments, heads: Heads, block_length: int, num_processes: int) -> GlobalBatch:
    """How a step is made of micro steps by a number of processes.

    Raises:
        UserError: when something does not divide exactly.
    """
    size = arguments.model.sequence_parallel_size
    check_sequence_parallel(size, heads, block_length=block_length, num_processes=num_processes)
    micro_step = GlobalBatch(
        block_length=block_length,
        micro_batch_blocks=1 if arguments.finds_micro_batch else arguments.trainer["per_device_train_batch_size"],
        gradient_accumulation_steps=1,
        num_processes=num_processes,
        sequence_parallel_size=size,
    )
    return plan_global_batch(
        micro_step,
        global_batch_tokens=arguments.data.global_batch_tokens,
        gradient_accumulation_steps=arguments.trainer.get("gradient_accumulation_steps"),
    )


def check_sequence_parallel(size: int, heads: Heads, *, block_length: int, num_processes: int) -> None:
    """Refuse a size that does not divide processes, heads and block.

    Raises:
        UserError: with everything that it does not divide.
    """
    divided = {
        "processes": num_processes,
        "attention heads (num_attention_heads)": heads.num_attention_heads,
        "heads of keys and values (num_key_value_heads)": heads.num_key_value_heads,
        "tokens of a block (--block_length)": block_length,
    }
    problems = [f"{count:,} {what}" for what, count in divided.items() if count % size]
    if problems:
        raise UserError(f"--sequence_parallel_size {size}: must divide the {' and the '.join(problems)}")
