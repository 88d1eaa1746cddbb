"""The global batch: tokens per optimizer step, kept the same while GPUs and micro batch change."""

from dataclasses import dataclass, replace

from pretraining.errors import UserError


@dataclass(frozen=True)
class GlobalBatch:
    """How one optimizer step is made of micro steps."""

    block_length: int
    micro_batch_blocks: int
    gradient_accumulation_steps: int
    num_processes: int
    sequence_parallel_size: int = 1  # processes that share each block
    makes_tokens: bool = True  # the micro steps follow from --global_batch_tokens, and are not given

    @property
    def num_groups(self) -> int:
        """Processes, or groups of them, that have blocks of their own."""
        return self.num_processes // self.sequence_parallel_size

    @property
    def blocks(self) -> int:
        """Token blocks per step over all processes."""
        return self.micro_batch_blocks * self.gradient_accumulation_steps * self.num_groups

    @property
    def tokens(self) -> int:
        """Tokens per step over all processes."""
        return self.blocks * self.block_length


def plan_global_batch(
    shape: GlobalBatch, *, global_batch_tokens: int | None, gradient_accumulation_steps: int | None
) -> GlobalBatch:
    """`shape` with the gradient accumulation that makes `global_batch_tokens`, or that is given when that is None.

    Raises:
        UserError: when it does not divide exactly (with the nearest values that do), or both are given.
    """
    if global_batch_tokens is None:
        return replace(shape, gradient_accumulation_steps=gradient_accumulation_steps or 1, makes_tokens=False)
    if gradient_accumulation_steps is not None:
        raise UserError(
            f"--gradient_accumulation_steps {gradient_accumulation_steps}: follows from --global_batch_tokens "
            f"{global_batch_tokens}; leave it out, or add --global_batch_tokens none"
        )
    micro_step_tokens = replace(shape, gradient_accumulation_steps=1).tokens
    if global_batch_tokens < 1 or global_batch_tokens % micro_step_tokens:
        below = global_batch_tokens // micro_step_tokens * micro_step_tokens
        fitting = " or ".join(f"{tokens}" for tokens in (below, below + micro_step_tokens) if tokens > 0)
        blocks, rest = divmod(global_batch_tokens, shape.block_length)
        flag = "--per_device_train_batch_size"
        kept = "" if rest or not blocks else f", or processes and {flag} that divide its {blocks} blocks"
        share = f", {shape.sequence_parallel_size} of which share a block" if shape.sequence_parallel_size > 1 else ""
        raise UserError(
            f"--global_batch_tokens {global_batch_tokens}: is no multiple of {micro_step_tokens} = "
            f"{shape.block_length} tokens x {shape.micro_batch_blocks} blocks ({flag}) x "
            f"{shape.num_processes} processes{share}; give {fitting}{kept}"
        )
    return replace(shape, gradient_accumulation_steps=global_batch_tokens // micro_step_tokens)
