"""The phases of a run as a recipe lists them: what each reads, its share of the tokens, its learning rate."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any, Literal

from pretraining.cli.flags import NONE_WORD, flag, flags_of
from pretraining.cli.synonyms import TRAINS, remedy_of
from pretraining.errors import nearest, raise_problems

NAME = re.compile(r"\w[\w.-]{0,63}")
EXAMPLE = '{"name": "anneal", "dataset": "blocks", "share": 0.1}'
NEEDED = ("name", "dataset", "share")
SUM_TOLERANCE = 1e-6  # 1/3 may be written as 0.3333333


@dataclass(frozen=True)
class PhaseArguments:
    """One phase; a learning-rate field that is None is that of the schedule before it."""

    name: str = flag("", "name of the phase, for logs and metrics")
    dataset: list[str] = flag([], "block stores with their shares, as --dataset has them")
    share: float = flag(1.0, "share of the tokens of the run")
    lr_scheduler_type: Literal["cosine", "wsd", "linear", "constant"] | None = flag(None, "schedule of this phase")
    learning_rate: float | None = flag(None, "peak; none: where the phase before ends")
    min_learning_rate: float | None = flag(None, "final learning rate; none: 0 after the first phase")
    warmup_steps: float | None = flag(None, "linear warmup to the peak; below 1 a share of the phase")
    decay_steps: float | None = flag(None, "steps of wsd's decay; below 1 a share of the phase")

    @property
    def has_schedule(self) -> bool:
        """Whether another schedule begins with this phase."""
        own = (self.lr_scheduler_type, self.learning_rate, self.min_learning_rate, self.warmup_steps, self.decay_steps)
        return any(value is not None for value in own)


def read_phase(text: str) -> PhaseArguments:
    """Read a phase from its JSON object.

    Raises:
        ValueError: with each problem as one argument.
    """
    content = _json_object(text)
    flags = {one.name: one for one in flags_of(PhaseArguments)}
    values: dict[str, Any] = {}
    problems = [f"{name} is missing; a phase is e.g. {EXAMPLE}" for name in NEEDED if name not in content]
    for name, given in content.items():
        if name not in flags:
            known = (remedy_of(name, {*flags, TRAINS}) or "").removeprefix("--")
            hint = f" (did you mean {known}?)" if known in flags else nearest(name, flags)
            problems.append(f"{name}: is not a field of a phase{hint}")
            continue
        try:
            if given is None and not flags[name].is_optional:
                raise ValueError("expects a value, not null")
            words = _words(given)
            values[name] = flags[name].value(words)
            problems += [f"{name} {problem}" for problem in flags[name].range_problems(words, values[name])]
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if "name" in values and not NAME.fullmatch(values["name"]):
        problems.append(f"name {values['name']!r}: must be of letters, digits, '_', '-' and '.'")
    place = f"phase {values['name']}: " if "name" in values else ""
    if problems:
        raise ValueError(*(f"{place}{problem}" for problem in problems))
    return PhaseArguments(**values)


def phases_problems(phases: Sequence[PhaseArguments]) -> list[str]:
    """What is wrong with all phases together."""
    problems = []
    names = [phase.name for phase in phases]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        problems.append(f"--phases: two are called {repeated[0]}; use different names")
    total = sum(phase.share for phase in phases)
    if phases and not isclose(total, 1, abs_tol=SUM_TOLERANCE):
        problems.append(f"--phases: the shares sum to {total:g}, not to 1; change one of {', '.join(names)}")
    return problems


def phase_ends(phases: Sequence[PhaseArguments], num_steps: int) -> list[int]:
    """The last step of each phase, the whole number nearest to its place: no step is lost, none counts twice.

    Raises:
        UserError: for a phase without a step.

    >>> phase_ends([PhaseArguments(share=0.9), PhaseArguments(share=0.1)], 25)
    [22, 25]
    """
    shares = [phase.share for phase in phases]
    ends = [round(num_steps * sum(shares[: number + 1]) / sum(shares)) for number in range(len(shares))]
    raise_problems(
        f"--phases: {phase.name}: its share of {phase.share:g} of {num_steps:,} steps is less than one step; use a "
        "larger share, or a longer run"
        for phase, first, end in zip(phases, [0, *ends], ends, strict=False)
        if first >= end
    )
    return ends


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, _Pairs):
        raise ValueError(f"expects the fields of each phase, e.g. {EXAMPLE}")
    names = [name for name, _ in content]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(*(f"{name}: duplicate key; keep one" for name in repeated))
    return dict(content)


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object in order."""


def _words(value: Any) -> list[str]:
    """The words that a value of a phase would be on a command line."""
    if isinstance(value, _Pairs):
        raise ValueError("expects a value or a list of them, not a mapping")
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [NONE_WORD if value is None else value if isinstance(value, str) else json.dumps(value)]
