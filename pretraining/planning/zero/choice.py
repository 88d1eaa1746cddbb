"""Which stage, offload, micro batch and checkpointing suit a machine: what --deepspeed auto ranks, and why.

Of what fits, fp32 sums first, then the fastest by the arithmetic of speed.py; of what is as fast, what offloads least
and then what sends least. Only plans are compared, so the same machine has the same choice on every process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pretraining.planning.fit import choose_gradient_type, fits
from pretraining.planning.footprint import Footprint, footprint
from pretraining.planning.global_batch import GlobalBatch, divisors
from pretraining.planning.layout import HALF_TYPES, MachineSpec, TrainingLayout
from pretraining.planning.speed import Speeds, tokens_per_second_per_gpu
from pretraining.planning.suggestions import ENOUGH_TOKENS
from pretraining.planning.zero.traffic import sent_per_step
from pretraining.system.formatting import format_bytes

# In the order in which they are preferred where nothing else decides.
CONFIGS = (
    "ds_config.json",
    "ds_config_zero1.json",
    "ds_config_zero2.json",
    "ds_config_hpz.json",
    "ds_config_zero2_offload_optimizer.json",
    "ds_config_zero1_offload_optimizer.json",
    "ds_config_offload_optimizer.json",
    "ds_config_offload.json",
)
AS_FAST = 1.02  # times the seconds of the fastest; the arithmetic is not better than that


@dataclass(frozen=True)
class Choice:
    """A config of this project and flags, with the plan that follows."""

    config: str
    is_checkpointed: bool
    layout: TrainingLayout
    batch: GlobalBatch
    machine: MachineSpec
    speeds: Speeds

    @property
    def flags(self) -> str:
        """The choice as a user would type it."""
        switch = str(self.is_checkpointed).lower()
        return (
            f"--deepspeed {self.config} --per_device_train_batch_size {self.layout.micro_batch_blocks} "
            f"--activation_checkpointing {switch}"
        )

    @cached_property
    def needed(self) -> Footprint:
        """The memory that it needs."""
        return footprint(self.layout, has_gpu=self.machine.has_gpu)

    @cached_property
    def sent_bytes(self) -> float:
        """Bytes that each GPU sends per step."""
        return sent_per_step(self.layout, self.batch.gradient_accumulation_steps).total

    @cached_property
    def tokens_per_second(self) -> float | None:
        """Tokens per second and GPU by arithmetic; None for a GPU that is not listed, in fp32, and without one."""
        return tokens_per_second_per_gpu(self.layout, self.batch, self.machine.gpu_type, self.speeds)

    def describe(self) -> str:
        """The choice with its memory, what it sends, and its speed."""
        needed, gpu = self.needed, self.machine.has_gpu
        memory = f"{format_bytes(needed.gpu_bytes)} per GPU" if gpu else f"{format_bytes(needed.host_bytes)} of memory"
        if self.layout.offload_optimizer:
            memory += f" and {format_bytes(needed.host_bytes)} of host memory"
        speed = self.tokens_per_second
        rate = "" if speed is None else f", {speed:,.0f} tokens/s/GPU by arithmetic"
        sums = ", gradients summed in bf16" if self.has_rounded_sums else ""
        return f"{self.flags}: {memory}, {format_bytes(int(self.sent_bytes))} sent per GPU and step{rate}{sums}"

    @property
    def has_rounded_sums(self) -> bool:
        """Whether gradients are summed in half precision."""
        return self.layout.grad_accum_dtype in HALF_TYPES

    @cached_property
    def preference(self) -> tuple[float, ...]:
        """What decides between choices that are as fast: the smallest comes first."""
        offloads = self.layout.offload_optimizer + self.layout.offload_parameters
        recomputes = self.tokens_per_second is None and self.is_checkpointed  # else it is in the speed
        sent, place = round(self.sent_bytes / 1e6), CONFIGS.index(self.config)
        return (offloads, recomputes, sent, place, -self.layout.num_tokens, self.needed.gpu_bytes)


def variants(choice: Choice, micro_batches: Sequence[int]) -> Iterator[Choice]:
    """Yield the choice with each of the micro batches, in as many micro steps as keep the global batch."""
    for number in micro_batches:
        layout = replace(choice.layout, micro_batch_blocks=number)
        sums = choose_gradient_type(layout.asked_sums, layout, choice.machine)
        layout = replace(layout, grad_accum_dtype=sums.name)
        yield replace(choice, layout=layout, batch=choice.batch.divided_for(layout))


def possible_micro_batches(batch: GlobalBatch) -> list[int]:
    """Blocks of a micro batch that divide the global batch, of at most `ENOUGH_TOKENS` tokens if they can be."""
    numbers = divisors(batch.blocks // batch.num_groups)
    return [number for number in numbers if number == 1 or number * batch.block_length <= ENOUGH_TOKENS]


def rank(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that fit, the best first; of none that fits, the one that needs least memory."""
    fitting = [choice for choice in choices if fits(choice.layout, choice.machine)]
    if not fitting:
        return sorted(choices, key=lambda choice: (choice.needed.gpu_bytes, choice.needed.host_bytes))[:1]
    exact = [choice for choice in fitting if not choice.has_rounded_sums]
    rounded = [choice for choice in fitting if choice.has_rounded_sums]
    return [*_by_speed(exact), *_by_speed(rounded)]


def runner_up(ranked: Sequence[Choice]) -> Choice | None:
    """The best one that differs in more than the micro batch; None if nothing else fits."""
    first = (ranked[0].config, ranked[0].is_checkpointed)
    return next((choice for choice in ranked[1:] if (choice.config, choice.is_checkpointed) != first), None)


def _by_speed(choices: Sequence[Choice]) -> list[Choice]:
    """Those that are as fast as the fastest by preference, then the others by speed; all by preference without one."""
    fastest = max((one.tokens_per_second or 0.0 for one in choices), default=0.0)

    def order(one: Choice) -> tuple[float, ...]:
        speed = one.tokens_per_second or 0.0
        is_slower = speed * AS_FAST < fastest
        return (is_slower, -speed * is_slower, *one.preference)

    return sorted(choices, key=order)
