"""Write run.json, with everything needed to repeat a run, and compare it with a resumed run."""

import dataclasses
import itertools
import json
import logging
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.errors import UserError, raise_problems
from pretraining.runs.command import command
from pretraining.runs.record_file import DAMAGED_SUFFIX, newest_copy, read_record_file, read_run_record
from pretraining.runs.run_folder import RUN_RECORD_NAME
from pretraining.system.files import write_atomically
from pretraining.system.machines.software import VERSIONS_THAT_MATTER, git_state, installed_version, package_versions

UNCHANGEABLE = ("optimizer",)  # a checkpoint has the state of one optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What must stay the same when a run resumes."""

    data: Sequence[Mapping[str, Any]]
    tokenizer_sha256: str
    model_config: Mapping[str, Any]
    global_batch_tokens: int
    seed: int
    order_seed: int
    document_masking: bool
    ignore_first_token: bool
    precision: str
    optimizer: str
    optimizer_settings: Mapping[str, Any]
    initial_weights: Mapping[str, str] | None = None
    product_precision: str | None = None  # of the layers' matrix multiplications, where it is not `precision`


@dataclass(frozen=True)
class RunRecord:
    """What a run was started with; every field can be written as JSON."""

    identity: RunIdentity
    schedule: Mapping[str, Any]
    arguments: Mapping[str, Any]
    ds_config: Mapping[str, Any]
    num_parameters: int
    block_length: int
    hardware: Mapping[str, Any]
    resumed_from: str | None
    known_limit: Mapping[str, float] | None = None  # entropy in bits per byte by split, of synthetic data
    deepspeed_choice: Mapping[str, Any] | None = None  # of --deepspeed auto: for which flags, what, and what was next

    def write(self, run_dir: Path) -> None:
        """Write run.json, with the command, versions and commit of this process, and the earlier starts if any."""
        earlier = _earlier_record(run_dir)
        content = {
            "command": command(),
            **dataclasses.asdict(self),
            "python": platform.python_version(),
            "packages": package_versions(),
            "git": git_state(),
            "earlier_starts": [*earlier.pop("earlier_starts", []), *([earlier] if earlier else [])],
        }
        _write(run_dir, content)


def _earlier_record(run_dir: Path) -> dict[str, Any]:
    """The record that this start replaces, empty for a new run; a damaged file is kept under another name."""
    path = run_dir / RUN_RECORD_NAME
    if not path.is_file() and newest_copy(run_dir) is None:
        return {}
    earlier = read_run_record(run_dir)
    if path.is_file() and isinstance(read_record_file(path), str):
        path.replace(path.with_name(path.name + DAMAGED_SUFFIX))
    return earlier


def add_to_run_record(run_dir: Path, **fields: Any) -> None:
    """Add fields to run.json that are known only after the start."""
    _write(run_dir, {**read_run_record(run_dir), **fields})


def copy_run_record(run_dir: Path, checkpoint: Path) -> None:
    """Copy run.json into a checkpoint of its run, if it can be read.

    Raises:
        OSError: when it cannot be written.
    """
    try:
        record = read_run_record(run_dir)
    except UserError as error:
        logger.warning("%s; %s gets no copy of it", error, checkpoint.name)
        return
    _write(checkpoint, record)


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, default=str, ensure_ascii=False)
    write_atomically(folder / RUN_RECORD_NAME, (text + "\n").encode())


def check_same_run(run_dir: Path, identity: RunIdentity, *, allowed: Collection[str]) -> None:
    """Refuse to resume a run with another identity; warn of differences in the fields of `allowed`.

    Raises:
        UserError: with every other difference and both values.
    """
    problems = []
    for path, was, now in changes_of_identity(read_run_record(run_dir).get("identity", {}), identity):
        field = path.split(".")[0]
        if field in allowed:
            logger.warning("--allow_changed %s: %s was %s, now it is %s", field, path, was, now)
        else:
            remedy = "use the same flags"
            if field == "initial_weights":
                remedy = "the flag names another model now, or its files have changed: use the one of run.json"
            if field not in UNCHANGEABLE:
                remedy += f", or pass --allow_changed {field}"
            problems.append(f"--resume: {path} differs from that of {run_dir} (it was {was}, now {now}); {remedy}")
    raise_problems(problems)


def changes_of_identity(recorded: Mapping[str, Any], identity: RunIdentity) -> list[tuple[str, Any, Any]]:
    """`differences` of a recorded identity and that of this start.

    Files of a parent that are not read any more do not count: earlier versions recorded all *.safetensors of its
    folder, also those that its index does not name.
    """
    ours = json.loads(json.dumps(dataclasses.asdict(identity), default=str))
    was, now = recorded.get("initial_weights"), ours["initial_weights"]
    if was and now and now.keys() <= was.keys():
        recorded = {**recorded, "initial_weights": {name: was[name] for name in now}}
    return differences(recorded, ours)


def warn_of_versions(run_dir: Path) -> None:
    """Warn of Python and package versions that differ from those of the run's last start."""
    recorded = read_run_record(run_dir)
    was = {"Python": recorded.get("python"), **recorded.get("packages", {})}
    now = {"Python": platform.python_version(), **{name: installed_version(name) for name in VERSIONS_THAT_MATTER}}
    if changed := _changes(was, now):
        logger.warning("%s: resumes with other versions than at its last start: %s", run_dir, changed)


def warn_of_processor(run_dir: Path, *, now: Mapping[str, object]) -> None:
    """Warn that a run resumes on another processor, or with other kernels or threads, than at its last start."""
    if changed := _changes(read_run_record(run_dir).get("hardware", {}), now):
        words = "the same to rounding, not to the bit"
        logger.warning("%s: computes differently than at its last start (%s): %s", run_dir, changed, words)


def _changes(was: Mapping[str, object], now: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {was[name]} -> {now[name]}" for name in now if was.get(name) not in (None, now[name]))


def differences(was: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ, as (path, was, now).

    >>> differences({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1, 4]})
    [('a.c', 2, 3), ('d.1', None, 4)]
    """
    if isinstance(was, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*now, *was]))
        return [found for name in names for found in differences(was.get(name), now.get(name), f"{path}.{name}")]
    if isinstance(was, list) and isinstance(now, list):
        pairs = itertools.zip_longest(was, now)
        return [found for index, pair in enumerate(pairs) for found in differences(*pair, f"{path}.{index}")]
    return [] if was == now else [(path.removeprefix("."), was, now)]
