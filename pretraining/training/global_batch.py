"""The global batch: tokens per optimizer step, kept the same while GPUs and micro batch change."""

from dataclasses import dataclass

from pretraining.cli.errors import UserError


@dataclass(frozen=True)
class GlobalBatch:
    """How one optimizer step is made of micro steps."""

    block_length: int
    micro_batch_blocks: int
    gradient_accumulation_steps: int
    num_processes: int

    @property
    def blocks(self) -> int:
        """Token blocks per step over all processes."""
        return self.micro_batch_blocks * self.gradient_accumulation_steps * self.num_processes

    @property
    def tokens(self) -> int:
        """Tokens per step over all processes."""
        return self.blocks * self.block_length


def plan_global_batch(
    *,
    global_batch_tokens: int | None,
    gradient_accumulation_steps: int | None,
    block_length: int,
    micro_batch_blocks: int,
    num_processes: int,
) -> GlobalBatch:
    """Derive the gradient accumulation from `global_batch_tokens`, or take it as given when that is None.

    Raises:
        UserError: when it does not divide exactly (with the nearest values that do), or both are given.
    """
    if micro_batch_blocks < 1:
        raise UserError(f"--per_device_train_batch_size {micro_batch_blocks}: give 1 or more")
    if global_batch_tokens is None:
        return GlobalBatch(block_length, micro_batch_blocks, gradient_accumulation_steps or 1, num_processes)
    if gradient_accumulation_steps is not None:
        raise UserError(
            f"--gradient_accumulation_steps {gradient_accumulation_steps}: follows from --global_batch_tokens "
            f"{global_batch_tokens}; leave it out, or add --global_batch_tokens none"
        )
    micro_step_tokens = block_length * micro_batch_blocks * num_processes
    if global_batch_tokens < 1 or global_batch_tokens % micro_step_tokens:
        below = global_batch_tokens // micro_step_tokens * micro_step_tokens
        fitting = " or ".join(f"{tokens}" for tokens in (below, below + micro_step_tokens) if tokens > 0)
        raise UserError(
            f"--global_batch_tokens {global_batch_tokens}: is no multiple of {micro_step_tokens} = {block_length} "
            f"tokens x {micro_batch_blocks} blocks (--per_device_train_batch_size) x {num_processes} processes; "
            f"give {fitting}"
        )
    return GlobalBatch(block_length, micro_batch_blocks, global_batch_tokens // micro_step_tokens, num_processes)
