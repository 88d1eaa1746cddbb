#!/usr/bin/env python3
"""Faults injected into runs: how many, what they cost, and whether any result is wrong (`make faults`).

    python3 -m benchmarks.faults --kills 60

Kills a real run under the deepspeed launcher again and again (tools.resume_proof), and runs the tests that break
things, test_kills.py with as many kills. Each test records how many it made. Results: docs/benchmarks/faults.md.
"""

import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from benchmarks.results import command_line, hardware, table, versions, write_section
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.runs.compare import first_difference
from tools.killable_run import KillableRun
from tools.resume_proof import (
    PROGRAM,
    Killed,
    ProofArguments,
    kill_again_and_again,
    launch_command,
    measure,
    plan_kills,
)

logger = logging.getLogger("pretraining.benchmarks")

TESTS = {
    "test_kills.py": "kill -9 of one rank or both, at any instant or at any change of the disk in a save",
    "test_orphans.py": "kill -9 and SIGTERM of the launcher (deepspeed, torchrun, mpirun), of its command, of a rank",
    "test_supervise.py": "crashes under tools.supervise: ranks, launchers and supervisors killed, signals",
    "test_stopping.py": "SIGTERM, SIGINT, SIGUSR1, SIGHUP to a process, the launcher, the group; STOP; --max_hours",
    "test_hangs.py": "a rank that waits forever",
    "test_saving.py": "full disk, quota, too little free space; truncated and bit-flipped checkpoint files",
    "test_exports.py": "exports that are not the model; full disk at the export",
    "test_spikes.py": "poisoned blocks, steps with a NaN or Inf, fp16 overflow",
    "test_non_finite.py": "NaN planted in weights and moments",
    "test_shared_folder.py": "processes that do not share the run folder",
    "test_untrusted_models.py": "untrusted models, tokenizers, chat templates and recipes",
    "test_no_unpickling.py": "other uses of pickle in the sources",
    "test_reports.py": "reports that fail, hang or cannot be started; kill -9 of what started one",
    "test_preprocess_restart.py": "kill -9 of preprocess.py at any instant, full and read-only disk, dead mpirun rank",
    "test_preprocess_fuzz.py": "mutated input files",
    "test_forged_checkpoints.py": "checkpoints whose pickles would run code",
    "test_mutated_records.py": "mutated run.json, metrics.jsonl, trainer_state.json, complete.json",
    "test_mutated_manifests.py": "mutated manifests of block stores",
    "test_mutated_working_files.py": "mutated working files of an unfinished block store",
    "test_mutated_models.py": "mutated tokenizers, model configs and recipes",
    "test_bombs.py": "decompression bombs",
    "test_preprocess_commands.py": "odd command lines of preprocess.py and train_tokenizer.py",
    "test_pretrain_commands.py": "odd command lines of pretrain.py, finetune.py, generate.py and the tools",
    "test_hub_training.py": "a Hub that is down, hangs or refuses while a run is pushed; kill -9 meanwhile",
    "test_hub.py": "a Hub that is down, drops, forgets or damages what is pushed; kill -9 meanwhile",
}
LOST = "repeated steps, mean (maximum)"
PLACES = (
    "tests/faults",
    "tests/adversarial",
    "tests/programs/hub/test_hub_training.py",
    "tests/programs/hub/test_hub.py",
)
SAVE_STEPS = 20  # so that kills find more saves than the two of the recipe


@dataclass(frozen=True)
class FaultsArguments:
    """Flags of this proof."""

    kills: int = flag(60, "kills of the run under the launcher, and of the runs in the tests")
    run_recipe: Path = flag(Path("recipes/quickstart/pretrain.yaml"), "what is trained")
    seed: int = flag(0, "seed of the times and targets of the kills")
    work_dir: Path = flag(Path("runs/faults"), "folder of the runs, removed at the end")
    output: Path = flag(Path("docs/benchmarks/faults.md"), "page to write")


def main(argv: Sequence[str]) -> None:
    """Kill, test, write the page; exit code 1 if any result is wrong."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Faults", FaultsArguments)], argv)
    arguments.work_dir.mkdir(parents=True)
    about = f"{hardware()}; {versions(['torch', 'deepspeed', 'transformers'])}.\n\n{command_line('faults')}\n\n"
    num_kills, is_equal, proof = _proof(arguments)
    write_section(arguments.output, "A run that is killed again and again", about + proof)
    num_wrong_cases, tests = _tests(arguments, num_kills=num_kills)
    write_section(arguments.output, "Every other fault", about + tests)
    logger.info("%s", arguments.output.read_text())
    shutil.rmtree(arguments.work_dir)
    if num_wrong_cases or not is_equal:
        sys.exit(1)


def _proof(arguments: FaultsArguments) -> tuple[int, bool, str]:
    """Train once undisturbed and once killed; the kills, whether both runs are equal, and what it cost, in a table."""
    command = [*launch_command(ProofArguments()), str(PROGRAM), "--recipe", str(arguments.run_recipe)]
    command += ["--save_steps", str(SAVE_STEPS)]
    undisturbed, killed = (
        KillableRun(command, arguments.work_dir / name, PROGRAM) for name in ("undisturbed", "killed")
    )
    pace, chance = measure(undisturbed), random.Random(arguments.seed)
    plan = plan_kills(arguments.kills, pace, chance, has_parts=True)
    kills = kill_again_and_again(killed, plan, pace, chance)
    difference = first_difference(undisturbed.run_dir, killed.run_dir)
    resume_seconds = sum(killed.resume_seconds) / max(1, len(killed.resume_seconds))
    verdict = difference or "none: losses, gradient norms, evaluations and weights are bit-equal"
    result = (
        f"{arguments.run_recipe}, {pace.num_steps} steps, a checkpoint every {SAVE_STEPS}, two processes under "
        f"`deepspeed`. **Wrong results: {verdict}.** From a start to the next new step: {resume_seconds:.1f} s.\n\n"
        + kill_table(kills, num_steps=pace.num_steps, wrong="0" if difference is None else "1 in all")
    )
    return len(kills), difference is None, result


def kill_table(kills: Sequence[Killed], *, num_steps: int, wrong: str) -> str:
    """What was killed, when, how often, and what it cost; `wrong` is of all together, when the run is through."""
    found: dict[tuple[str, str], list[Killed]] = defaultdict(list)
    for kill in kills:
        found[f"kill -9 of {kill.part}", _when(kill, num_steps)].append(kill)
    rows = [[*key, str(len(some)), _lost(some), wrong] for key, some in sorted(found.items())]
    rows.append(["all", "", str(len(kills)), _lost(kills), wrong])
    return table(["fault", "when", "times tried", LOST, "wrong results"], rows)


def _when(kill: Killed, num_steps: int) -> str:
    if kill.reached < 0:
        return "while it starts"
    if kill.was_saving:
        return "during a save"
    return "in a step" if kill.reached < num_steps else "while it evaluates and exports"


def _lost(kills: Iterable[Killed]) -> str:
    return _mean_and_most([kill.lost_steps for kill in kills])


def _mean_and_most(steps: Sequence[int]) -> str:
    return f"{sum(steps) / len(steps):.1f} ({max(steps)})" if steps else ""


def _tests(arguments: FaultsArguments, *, num_kills: int) -> tuple[int, str]:
    """The tests that break things: how many cases came out wrong, and by test, with how often each broke something.

    `num_kills` are those made elsewhere, for the sum.
    """
    result = arguments.work_dir / "tests.xml"
    started_at = time.monotonic()
    environment = {**os.environ, "NUM_KILLS": str(arguments.kills), "NUM_MUTATIONS": "all"}
    subprocess.run(pytest_command(result), check=False, env=environment)
    minutes = (time.monotonic() - started_at) / 60
    cases: dict[str, list[Case]] = defaultdict(list)
    for element in ElementTree.parse(result).iter("testcase"):
        if element.find("skipped") is None:
            cases[_file_of(element)].append(_case(element))
    rows = [[TESTS.get(Path(path).name, ""), path, *_row(some)] for path, some in cases.items()]
    all_cases = [case for some in cases.values() for case in some]
    rows.append(["all", "", *_row(all_cases)])
    killed = sum(case.killed for case in all_cases)
    return sum(case.is_wrong for case in all_cases), (
        f"{minutes:.0f} minutes. **kill -9: {killed} times here, {num_kills} above, {killed + num_kills} in all.** "
        "A wrong result is a case that failed.\n\n"
        + table(["fault", "shown by", "times tried", "of these kill -9", LOST, "wrong results"], rows)
    )


def pytest_command(result: Path) -> list[str]:
    """Run all tests in `PLACES`, those marked long among them."""
    return [sys.executable, "-m", "pytest", "-q", "--timeout", "3000", *PLACES, f"--junitxml={result}"]


class Case(NamedTuple):
    """The record of a test: faults, kills among them, steps repeated after each."""

    tried: int
    killed: int
    lost_steps: list[int]
    is_wrong: bool


def _case(element: ElementTree.Element) -> Case:
    recorded = [(found.get("name"), int(found.get("value", "0"))) for found in element.iter("property")]
    tried, killed = (sum(value for name, value in recorded if name == kind) for kind in ("tried", "killed"))
    lost_steps = [value for name, value in recorded if name == "lost_steps"]
    is_wrong = any(element.find(outcome) is not None for outcome in ("failure", "error"))
    return Case(tried or killed or 1, killed, lost_steps, is_wrong)


def _row(cases: Sequence[Case]) -> list[str]:
    lost_steps = [steps for case in cases for steps in case.lost_steps]
    counts = sum(case.tried for case in cases), sum(case.killed for case in cases)
    return [*(f"{count:,}" for count in counts), _mean_and_most(lost_steps), str(sum(case.is_wrong for case in cases))]


def _file_of(element: ElementTree.Element) -> str:
    return element.get("classname", "").replace(".", "/") + ".py"


if __name__ == "__main__":
    run_program(main)
