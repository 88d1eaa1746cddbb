"""The global batch: tokens per optimizer step, the same whatever the number of GPUs and the micro batch."""

from dataclasses import dataclass, field, replace
from math import isqrt

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.errors import UserError
from pretraining.planning.layout import TrainingLayout

Heads = tuple[int, int]  # attention heads, and heads of keys and values


@dataclass(frozen=True)
class GlobalBatch:
    """How one optimizer step is divided into micro steps."""

    block_length: int
    micro_batch_blocks: int
    gradient_accumulation_steps: int
    num_processes: int
    sequence_parallel_size: int = 1  # processes that share each block
    follows_tokens: bool = True  # the micro steps follow from the global batch
    flag: str = field(default="", compare=False)  # that decided the number of blocks, with its value

    @property
    def num_groups(self) -> int:
        """Processes, or groups of them, that work on different blocks."""
        return self.num_processes // self.sequence_parallel_size

    @property
    def blocks(self) -> int:
        """Token blocks per step over all processes."""
        return self.micro_batch_blocks * self.gradient_accumulation_steps * self.num_groups

    @property
    def tokens(self) -> int:
        """Tokens per step over all processes."""
        return self.blocks * self.block_length

    @property
    def micro_step_blocks(self) -> int:
        """Token blocks per micro step over all processes, of which the blocks per step are a multiple."""
        return self.micro_batch_blocks * self.num_groups

    def divided_for(self, layout: TrainingLayout) -> "GlobalBatch":
        """The same blocks per step, by the processes and the micro batch of a layout."""
        steps = self.blocks // layout.num_groups // layout.micro_batch_blocks
        return replace(
            self,
            micro_batch_blocks=layout.micro_batch_blocks,
            gradient_accumulation_steps=steps,
            num_processes=layout.num_processes,
        )

    def flag_for(self, num_blocks: int) -> str:
        """The flag that makes steps of `num_blocks`."""
        if self.follows_tokens:
            return f"--global_batch_blocks {num_blocks}"
        return f"--gradient_accumulation_steps {num_blocks // self.micro_step_blocks}"


def resolve_global_batch(
    arguments: PretrainArguments, heads: Heads, block_length: int, num_processes: int
) -> GlobalBatch:
    """Divide the global batch of the flags among a number of processes.

    Raises:
        UserError: when something does not divide exactly, with the nearest values that do.
    """
    size = arguments.model.sequence_parallel_size
    check_sequence_parallel(size, heads, block_length=block_length, num_processes=num_processes)
    micro_batch_blocks = arguments.trainer["per_device_train_batch_size"]
    micro_step = GlobalBatch(block_length, micro_batch_blocks, 1, num_processes, size)
    data = arguments.data
    accumulation = arguments.trainer.get("gradient_accumulation_steps")
    if not data.has_global_batch:
        flag = f"--gradient_accumulation_steps {accumulation or 1}"
        return replace(micro_step, gradient_accumulation_steps=accumulation or 1, follows_tokens=False, flag=flag)
    in_blocks = data.global_batch_blocks is not None
    name, amount = ("blocks", data.global_batch_blocks) if in_blocks else ("tokens", data.global_batch_tokens)
    assert amount is not None
    flag = f"--global_batch_{name} {amount}"
    if accumulation is not None:
        raise UserError(
            f"--gradient_accumulation_steps {accumulation}: follows from {flag}; remove it, or add "
            f"--global_batch_{name} none"
        )
    in_one = micro_step.blocks if in_blocks else micro_step.tokens
    if amount < 1 or amount % in_one:
        raise UserError(_not_divisible(flag, amount, in_one, micro_step))
    return replace(micro_step, gradient_accumulation_steps=amount // in_one, flag=flag)


def _not_divisible(flag: str, size: int, in_one: int, micro_step: GlobalBatch) -> str:
    """The message for a global batch of tokens or blocks, of which a micro step has `in_one`."""
    below = size // in_one * in_one
    fitting = " or ".join(f"{number}" for number in (below, below + in_one) if number > 0)
    in_tokens = in_one != micro_step.blocks
    blocks, rest = divmod(size, micro_step.block_length if in_tokens else 1)
    micro_flag, sharing = "--per_device_train_batch_size", micro_step.sequence_parallel_size
    other = "" if rest or not blocks else f", or processes and {micro_flag} that divide its {blocks} blocks"
    share = f", {sharing} of which share a block" if sharing > 1 else ""
    length = f"{micro_step.block_length} tokens x " if in_tokens else ""
    return (
        f"{flag}: is not a multiple of {in_one} = {length}{micro_step.micro_batch_blocks} blocks ({micro_flag}) "
        f"x {micro_step.num_processes} processes{share}; use {fitting}{other}"
    )


def check_sequence_parallel(size: int, heads: Heads, *, block_length: int, num_processes: int) -> None:
    """Reject a sequence parallel size that does not divide processes, heads and block.

    Raises:
        UserError: with everything that it does not divide.
    """
    num_attention_heads, num_key_value_heads = heads
    divided = {
        "processes": num_processes,
        "attention heads (num_attention_heads)": num_attention_heads,
        "heads of keys and values (num_key_value_heads)": num_key_value_heads,
        "tokens of a block (--block_length)": block_length,
    }
    problems = [f"{count:,} {what}" for what, count in divided.items() if count % size]
    if problems:
        raise UserError(f"--sequence_parallel_size {size}: must divide the {' and the '.join(problems)}")


def divisors(size: int) -> list[int]:
    """Divisors of `size`, the largest first: `size` itself."""
    small = [number for number in range(1, isqrt(size) + 1) if size % number == 0]
    return sorted({*small, *(size // number for number in small)}, reverse=True)
