"""Open the block stores of all phases of a run at its start, as one mixture."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.arguments.pretrain import DataArguments
from pretraining.data.mixture import BlockStore, Mixture, WeightedStore, load_mixture
from pretraining.errors import UserError, raise_problems

DATASET_FLAG = re.compile(r"^--dataset\b(?!_)")


def load_data(flags: DataArguments) -> Mixture:
    """Open the block stores of --dataset, or those of all phases.

    Raises:
        UserError: when one is missing, the weights are invalid, or the stores are not compatible.
    """
    if not flags.phases:
        return load_mixture(flags.dataset, revision=flags.dataset_revision)
    stores: dict[str, BlockStore] = {}
    phases = [_load_phase(phase, flags.dataset_revision, stores) for phase in flags.phases]
    raise_problems(_name_problems(flags.phases, phases))
    return Mixture(_all_parts(flags.phases, phases), tuple(phases))


def _load_phase(phase: PhaseArguments, revision: str | None, stores: dict[str, BlockStore]) -> Mixture:
    """The mixture of one phase; `stores` has those that are open."""
    with naming_phase(phase):
        if DataArguments(phase.dataset).is_synthetic:
            raise UserError("--dataset synthetic: random ids cannot be read in a phase; use a block store")
        return load_mixture(phase.dataset, revision=revision, opened=stores)


@contextmanager
def naming_phase(phase: PhaseArguments) -> Iterator[None]:
    """Name the phase in problems of its data sets, which begin with --dataset otherwise.

    Raises:
        UserError: in place of one that names no phase.
    """
    try:
        yield
    except UserError as error:
        place = f"--phases: {phase.name}: dataset"
        raise UserError(*(DATASET_FLAG.sub(place, problem) for problem in error.problems)) from None


def _name_problems(flags: Sequence[PhaseArguments], phases: Sequence[Mixture]) -> list[str]:
    """A source has one name, and a name is that of one source: metrics and resumed runs rely on it."""
    stores: dict[str, str] = {}
    names: dict[str, str] = {}
    problems = []
    num_stores = len({part.store.name for mixture in phases for part in mixture.parts})
    for phase, mixture in zip(flags, phases, strict=True):
        for part in mixture.parts:
            name, store = part.source or "", part.store.name
            if not name and num_stores > 1:
                problems.append(f"--phases: {phase.name}: dataset {store} needs a name; use NAME={store}")
            elif stores.setdefault(name, store) != store:
                problems.append(f"--phases: {phase.name}: {name} is {store}, before it was {stores[name]}; rename it")
            elif "" in (name, names.setdefault(store, name)) and name != names[store]:
                named = name or names[store]
                problems.append(
                    f"--phases: {phase.name}: {store} has a name in one phase only; use {named}={store} in each"
                )
            elif names[store] != name:
                problems.append(f"--phases: {phase.name}: {store} is {name}, before it was {names[store]}; rename it")
    return problems


def _all_parts(flags: Sequence[PhaseArguments], phases: Sequence[Mixture]) -> tuple[WeightedStore, ...]:
    """The stores of all phases in the order in which they are named, each with its share of the run's blocks."""
    parts: dict[str, WeightedStore] = {}
    for phase, mixture in zip(flags, phases, strict=True):
        total = sum(part.weight for part in mixture.parts)
        for part in mixture.parts:
            before = parts.get(part.store.name, replace(part, weight=0.0))
            parts[part.store.name] = replace(before, weight=before.weight + phase.share * part.weight / total)
    return tuple(parts.values())
