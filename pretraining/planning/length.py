"""Whether warmup, batch and length of a run fit its data, and the flags that do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.logs import counted
from pretraining.planning.global_batch import GlobalBatch

MIN_STEPS = 100  # fewer are too few for a learning rate to rise and fall; of a run as long as its data
GOOD_STEPS = 1000  # that a suggested batch makes, if there are as many micro steps
# Up to 4 epochs of the same text are about as good as new text; later ones add less and less (arXiv 2305.16264).
MAX_EPOCHS = 10
MIN_STEP_BLOCKS = 8  # that are suggested: the gradient of fewer is mostly noise


@dataclass(frozen=True)
class Source:
    """A block store of a run, its weight, and how often the run reads it; a single one has no name."""

    name: str | None
    store: str
    weight: float
    epochs: float


@dataclass(frozen=True)
class RunLength:
    """What decides whether a run fits its data."""

    batch: GlobalBatch
    num_steps: int
    num_blocks: int  # of an epoch
    warmup_steps: int
    peak: float  # the highest learning rate
    sources: Sequence[Source]


def length_advice(arguments: PretrainArguments, run: RunLength) -> Iterator[str]:
    """Yield a warning with the flags that fit for all that is likely a mistake; nothing for most runs.

    Its step is not an `oversized_step`.
    """
    smaller = _smaller_batch(arguments, run)
    if run.num_steps <= run.warmup_steps:
        yield _long_warmup(arguments, run, smaller)
    elif run.num_steps < MIN_STEPS and smaller is not None:
        yield (
            f"{run.batch.flag}: the data make only {run.num_steps:,} steps of {run.batch.blocks:,} blocks; use "
            f"{_fitting_flags(run.batch, smaller, run.num_steps * run.batch.blocks, run.warmup_steps)}"
            f"{_more_steps(arguments, run.num_steps * run.batch.blocks // smaller)}"
        )
    for source in run.sources:
        if source.epochs > MAX_EPOCHS and not arguments.data.is_synthetic:
            yield _repeated(arguments, run, source)


def oversized_step(
    batch: GlobalBatch, num_blocks: int, *, warmup_steps: float = 0, is_synthetic: bool = False
) -> str | None:
    """What is wrong when an epoch has fewer blocks than a step; None when it has enough."""
    if num_blocks >= batch.blocks:
        return None
    remedies = [] if is_synthetic else ["preprocess more text"]
    at_most = num_blocks // batch.micro_step_blocks * batch.micro_step_blocks
    if at_most and (is_synthetic or at_most >= MIN_STEP_BLOCKS):
        blocks = min(fitting_blocks(batch, num_blocks), at_most)
        remedies.insert(0, f"use {_fitting_flags(batch, blocks, num_blocks, warmup_steps)}")
    elif is_synthetic or num_blocks >= MIN_STEP_BLOCKS:
        remedies.insert(0, "use fewer processes or a smaller --per_device_train_batch_size")
    return (
        f"{batch.flag}: a step of {counted(batch.blocks, 'block')} is more than the {num_blocks:,} of an epoch; "
        + ", or ".join(remedies)
    )


def fitting_blocks(batch: GlobalBatch, num_blocks: int) -> int:
    """Blocks per step that divide a number of blocks into about GOOD_STEPS, and at least MIN_STEP_BLOCKS.

    They are a micro step times a power of two.
    """
    micro_steps = max(1, num_blocks // GOOD_STEPS // batch.micro_step_blocks)
    needed = math.ceil(MIN_STEP_BLOCKS / batch.micro_step_blocks)
    return batch.micro_step_blocks * max(2 ** (micro_steps.bit_length() - 1), 2 ** (needed - 1).bit_length())


def _fitting_flags(
    batch: GlobalBatch, blocks: int, num_blocks: int, warmup_steps: float, warmup_flag: str = "--warmup_steps"
) -> str:
    """The flags for steps of `blocks`, of the `num_blocks` of a run, with a shorter warmup where it does not fit."""
    steps = num_blocks // blocks
    warmup = f" {warmup_flag} {_fitting_warmup(steps)}" if warmup_steps >= steps else ""
    return f"{batch.flag_for(blocks)}{warmup}, which makes {steps:,} step{'s' * (steps != 1)}"


def _more_steps(arguments: PretrainArguments, num_steps: int) -> str:
    """What else helps where the smallest step still makes too few steps."""
    is_few = num_steps < MIN_STEPS and not arguments.data.is_synthetic
    return "; more text or a larger --num_train_epochs makes more" if is_few else ""


def _fitting_warmup(num_steps: int) -> int:
    """Steps of warmup: a tenth of a short run, a 50th of a longer one. A share would be one of --schedule_steps."""
    return num_steps // (10 if num_steps < GOOD_STEPS else 50)


def describe_unread(arguments: PretrainArguments, run: RunLength) -> str | None:
    """How much of the data a run reads, and the flag to read all, where it reads less than all of a single store."""
    if len(run.sources) > 1 or run.sources[0].epochs >= 1 or run.num_blocks < run.batch.blocks:
        return None
    steps = run.num_blocks // run.batch.blocks
    if steps <= run.num_steps:  # the blocks left are fewer than a step
        return None
    left = run.num_blocks - steps * run.batch.blocks
    but = f" but {counted(left, 'block')}, fewer than a step" if left else ""
    return f"{run.sources[0].epochs:.1%} of the data; {_length_flag(arguments, run, steps, 1)} reads all{but}"


def _follows_data(arguments: PretrainArguments) -> bool:
    """Whether the length of the run follows from its data rather than from a flag."""
    return arguments.trainer.get("max_steps", -1) <= 0 and arguments.data.max_tokens is None


def _length_flag(arguments: PretrainArguments, run: RunLength, steps: int, epochs: float) -> str:
    """The flag that sets the length of this run, with another value."""
    if arguments.trainer.get("max_steps", -1) > 0:
        return f"--max_steps {steps}"
    if arguments.data.max_tokens is not None:
        return f"--max_tokens {steps * run.batch.tokens}"
    return f"--num_train_epochs {epochs:g}"


def _smaller_batch(arguments: PretrainArguments, run: RunLength) -> int | None:
    """Blocks of a step that makes more steps of the same data; None where their number was set, or nothing is less."""
    if not (_follows_data(arguments) and run.batch.follows_tokens):
        return None
    blocks = fitting_blocks(run.batch, run.num_steps * run.batch.blocks)
    return blocks if blocks < run.batch.blocks else None


def _long_warmup(arguments: PretrainArguments, run: RunLength, smaller: int | None) -> str:
    """The message for a warmup as long as the run, and the blocks per step that make more steps, if any."""
    flag, phases = "--warmup_steps", arguments.data.phases
    if phases and phases[0].warmup_steps is not None:
        flag = f"--phases: {phases[0].name}: warmup_steps"
    fitting = f"{flag} {_fitting_warmup(run.num_steps)}"
    if smaller is not None:
        fitting = _fitting_flags(run.batch, smaller, run.num_steps * run.batch.blocks, run.warmup_steps, flag)
        fitting += _more_steps(arguments, run.num_steps * run.batch.blocks // smaller)
    reached = f"ends at {run.peak * run.num_steps / run.warmup_steps:.2e}, on its way up to --learning_rate"
    if run.num_steps == run.warmup_steps:
        reached = "rises until the last step, to --learning_rate"
    return (
        f"{flag} {run.warmup_steps}: the run has {run.num_steps:,} step{'s' * (run.num_steps != 1)}, so the learning "
        f"rate {reached} {run.peak:.2e}; use {fitting}"
    )


def _repeated(arguments: PretrainArguments, run: RunLength, source: Source) -> str:
    steps = math.floor(run.num_steps * MAX_EPOCHS / source.epochs)
    epochs = float(MAX_EPOCHS)
    if len(run.sources) > 1 and _follows_data(arguments):  # an epoch is one over all blocks, not over this source
        epochs = two_digits(arguments.trainer["num_train_epochs"] * MAX_EPOCHS / source.epochs)
    shorter = f"{_length_flag(arguments, run, max(1, steps), epochs)} for {MAX_EPOCHS} times"
    fitting = f"{shorter}, or preprocess more text"
    if arguments.data.phases:
        fitting = f"a smaller weight of it in --phases, or {shorter}"
    elif len(run.sources) > 1 and run.num_steps * run.batch.blocks < MAX_EPOCHS * run.num_blocks:
        fitting = f"{source.name}={source.store}:{_weight_for(run, source):g} or {shorter}"
    flag, name = "--phases" if arguments.data.phases else "--dataset", source.name or "the data"
    return (
        f"{flag}: the run reads {name} {source.epochs:,.1f} times; text adds little after about 4 times "
        f"(arXiv 2305.16264); use {fitting}"
    )


def _weight_for(run: RunLength, source: Source) -> float:
    """The weight with which a source is read MAX_EPOCHS times, rounded down to two digits."""
    total = sum(other.weight for other in run.sources)
    share = source.weight / total * MAX_EPOCHS / source.epochs
    return two_digits(share / (1 - share) * (total - source.weight))


def two_digits(number: float, *, up: bool = False, min_unit: float = 0.0) -> float:
    """A positive number rounded down, or up, to two digits, and to a multiple of `min_unit` if it is a power of ten.

    >>> two_digits(1234), two_digits(1234, up=True), two_digits(1.5, min_unit=1.0)
    (1200.0, 1300.0, 1.0)
    """
    unit = max(min_unit, 10.0 ** (math.floor(math.log10(number)) - 1))
    return (math.ceil if up else math.floor)(number / unit) * unit
