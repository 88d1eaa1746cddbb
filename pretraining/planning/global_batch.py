"""The global batch: tokens per optimizer step, the same whatever the number of GPUs and the micro batch."""

from dataclasses import dataclass, replace

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.errors import UserError

Heads = tuple[int, int]  # attention heads, and heads of keys and values


@dataclass(frozen=True)
class GlobalBatch:
    """How one optimizer step is divided into micro steps."""

    block_length: int
    micro_batch_blocks: int
    gradient_accumulation_steps: int
    num_processes: int
    sequence_parallel_size: int = 1  # processes that share each block
    follows_tokens: bool = True  # the micro steps follow from --global_batch_tokens

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
    tokens = arguments.data.global_batch_tokens
    accumulation = arguments.trainer.get("gradient_accumulation_steps")
    if tokens is None:
        return replace(micro_step, gradient_accumulation_steps=accumulation or 1, follows_tokens=False)
    if accumulation is not None:
        raise UserError(
            f"--gradient_accumulation_steps {accumulation}: follows from --global_batch_tokens {tokens}; remove it, or "
            "add --global_batch_tokens none"
        )
    if tokens < 1 or tokens % micro_step.tokens:
        raise UserError(_not_divisible(tokens, micro_step))
    return replace(micro_step, gradient_accumulation_steps=tokens // micro_step.tokens)


def _not_divisible(tokens: int, micro_step: GlobalBatch) -> str:
    below = tokens // micro_step.tokens * micro_step.tokens
    fitting = " or ".join(f"{number}" for number in (below, below + micro_step.tokens) if number > 0)
    blocks, rest = divmod(tokens, micro_step.block_length)
    flag, size = "--per_device_train_batch_size", micro_step.sequence_parallel_size
    other = "" if rest or not blocks else f", or processes and {flag} that divide its {blocks} blocks"
    share = f", {size} of which share a block" if size > 1 else ""
    return (
        f"--global_batch_tokens {tokens}: is not a multiple of {micro_step.tokens} = {micro_step.block_length} tokens "
        f"x {micro_step.micro_batch_blocks} blocks ({flag}) x {micro_step.num_processes} processes{share}; use "
        f"{fitting}{other}"
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
