#!/usr/bin/env python3
"""What was done to runs, how often, what it cost and whether anything came out wrong: `make faults`.

    python3 -m benchmarks.faults --kills 60

Kills a real run under the deepspeed launcher again and again (tools.resume_proof), and runs tests/faults with as many
kills of their own. The result goes into benchmarks/faults.md.
"""

import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.results import command_line, hardware, table, versions, write_section
from pretraining.cli.errors import run_program
from pretraining.cli.flags import flag
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.runs.comparison import first_difference
from pretraining.runs.killable_run import KillableRun
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
    "test_restarts.py": "crashes under --restarts: ranks, supervisors and launchers killed, signals",
    "test_stopping.py": "SIGTERM, SIGINT, SIGUSR1 to a process, the launcher, the group; STOP; --max_hours",
    "test_hangs.py": "a rank that waits for ever",
    "test_saving.py": "full disk, quota, no room; truncated and bit-flipped checkpoint files",
    "test_exports.py": "exports that are not the model; full disk at the export",
    "test_spikes.py": "poisoned blocks, steps that are no number, fp16 overflow",
    "test_preprocess_restart.py": "preprocess.py killed 50 times, full and read-only disk, dead mpirun rank",
    "test_preprocess_fuzz.py": "2,100 mutated input files",
}


@dataclass(frozen=True)
class FaultsArguments:
    """Flags of this proof."""

    kills: int = flag(60, "kills of the run under the launcher, and of those that the tests start")
    run_recipe: Path = flag(Path("recipes/quickstart/pretrain.yaml"), "what is trained")
    seed: int = flag(0, "decides when the run is killed, and what of it")
    work_dir: Path = flag(Path("runs/faults"), "folder of the runs, removed at the end")
    output: Path = flag(Path("benchmarks/faults.md"), "where the result goes")


def main(argv: Sequence[str]) -> None:
    """Kill, test, write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Faults", FaultsArguments)], argv)
    arguments.work_dir.mkdir(parents=True)
    about = f"{hardware()}; {versions(['torch', 'deepspeed', 'transformers'])}.\n\n{command_line('faults')}\n\n"
    write_section(arguments.output, "A run that is killed again and again", about + _proof(arguments))
    write_section(arguments.output, "Every other fault", about + _tests(arguments))
    logger.info("%s", arguments.output.read_text())
    shutil.rmtree(arguments.work_dir)


def _proof(arguments: FaultsArguments) -> str:
    """Train once undisturbed and once killed; what it cost, by what was killed and when."""
    command = [*launch_command(ProofArguments()), str(PROGRAM), "--recipe", str(arguments.run_recipe)]
    undisturbed, killed = (
        KillableRun(command, arguments.work_dir / name, PROGRAM) for name in ("undisturbed", "killed")
    )
    pace, chance = measure(undisturbed), random.Random(arguments.seed)
    kills = kill_again_and_again(killed, plan_kills(arguments.kills, pace, chance, has_parts=True), chance)
    difference = first_difference(undisturbed.run_dir, killed.run_dir)
    found: dict[tuple[str, str], list[Killed]] = defaultdict(list)
    for kill in kills:
        when = "while it starts" if kill.reached < 0 else "during a save" if kill.was_saving else "in a step"
        found[f"kill -9 of {kill.part}", when].append(kill)
    rows = [[*key, str(len(some)), _lost(some)] for key, some in sorted(found.items())]
    rows.append(["all", "", str(len(kills)), _lost(kills)])
    resume_seconds = sum(killed.resume_seconds) / max(1, len(killed.resume_seconds))
    verdict = difference or "none: losses, gradient norms, evaluations and weights are bit-equal"
    return (
        f"{arguments.run_recipe}, {pace.num_steps} steps, two processes under `deepspeed`. "
        f"**Wrong results: {verdict}.** From a start to the next new step: {resume_seconds:.1f} s.\n\n"
        + table(["fault", "when", "times", "steps made again, mean (most)"], rows)
    )


def _lost(kills: Iterable[Killed]) -> str:
    steps = [kill.lost_steps for kill in kills]
    return f"{sum(steps) / len(steps):.1f} ({max(steps)})"


def _tests(arguments: FaultsArguments) -> str:
    """The tests that break runs: how many cases, how many came out wrong."""
    result = arguments.work_dir / "tests.xml"
    words = [sys.executable, "-m", "pytest", "-q", "--timeout", "3000", "tests/faults", f"--junitxml={result}"]
    began_at = time.monotonic()
    subprocess.run(words, check=False, env={**os.environ, "NUM_KILLS": str(arguments.kills)})
    cases = list(ElementTree.parse(result).iter("testcase"))
    total = Counter(_file_of(case) for case in cases)
    wrong, skipped = _with(cases, "failure") + _with(cases, "error"), _with(cases, "skipped")
    rows = [
        [TESTS.get(name, ""), f"tests/faults/{name}", str(count - skipped[name]), str(wrong[name])]
        for name, count in total.items()
    ]
    minutes = (time.monotonic() - began_at) / 60
    return f"{minutes:.0f} minutes.\n\n" + table(["fault", "shown by", "cases", "wrong results"], rows)


def _with(cases: Iterable[ElementTree.Element], outcome: str) -> Counter[str]:
    """How many cases of each file had this outcome."""
    return Counter(_file_of(case) for case in cases if case.find(outcome) is not None)


def _file_of(case: ElementTree.Element) -> str:
    return case.get("classname", "").rpartition(".")[2] + ".py"


if __name__ == "__main__":
    run_program(main)
