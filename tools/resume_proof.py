"""Prove on this machine that a run that was killed and restarted equals one that was never killed.

    python3 -m tools.resume_proof --kills 20 --recipe recipes/quickstart/pretrain.yaml
    python3 -m tools.resume_proof --launcher torchrun --num_gpus 8 --recipe my.yaml -- --max_steps 200 --save_steps 20

Trains twice: once without interruption, once killed by SIGKILL (all processes or some) while it starts, trains, saves
and exports, and restarted by the same command. Losses, gradient norms, evaluations and weights must then be bit-equal
(on a GPU, whose kernels add in another order each time, all but the weights to 0.1 %); otherwise the exit code is 1.
--recipe and everything after -- are flags of pretrain.py.
"""

from __future__ import annotations

import json
import logging
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.flags import flag
from pretraining.cli.logs import IN_ONE_LINE
from pretraining.cli.program import exit_process, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.runs.compare import GPU_TOLERANCE, first_difference
from pretraining.runs.run_folder import RUN_RECORD_NAME
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import DEEPSPEED, free_port
from tools.killable_run import KillableRun, Part

logger = logging.getLogger("pretraining.resume_proof")

DIFFERENT_EXIT_CODE = 1
PROGRAM = Path(__file__).parents[1] / "pretrain.py"


@dataclass(frozen=True)
class ProofArguments:
    """Flags of tools.resume_proof."""

    kills: int = flag(20, "number of kills of the second run")
    seed: int = flag(0, "seed of the moments and of what is killed")
    launcher: Literal["deepspeed", "torchrun", "python3"] = flag("deepspeed", "launcher of both runs")
    num_gpus: int | None = flag(None, "processes of a run; none: one per GPU, or two without a GPU")
    output_dir: Path | None = flag(None, "new folder for both runs; none: runs/resume_proof-TIME")

    def __post_init__(self) -> None:
        """Check what needs no file."""
        if self.launcher == "python3" and self.num_gpus not in (None, 1):
            raise UserError(f"--num_gpus {self.num_gpus}: python3 starts one process; use another --launcher")


class Kill(NamedTuple):
    """What is killed, and when: `seconds` after the start, after a step, or after the start of a save."""

    moment: Literal["start", "step", "save"]
    step: int
    seconds: float
    part: Part


class Killed(NamedTuple):
    """What was killed, the number of steps to repeat, and whether a save was in progress."""

    part: Part
    reached: int  # step; -1 before the first one
    lost_steps: int
    was_saving: bool


class Pace(NamedTuple):
    """Durations of the uninterrupted run, in seconds."""

    num_steps: int
    start: float
    step: float
    longest_save: float
    end: float


def main(argv: Sequence[str]) -> None:
    """Train twice, and compare."""
    own, training = split_command_line(argv)
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Proof", ProofArguments)], own)
    if parse_pretrain_arguments("", training).durability.resume != "auto":
        raise UserError("--resume: this tool restarts the run itself; remove it")
    folder = new_folder(arguments.output_dir)
    command = [*launch_command(arguments), str(PROGRAM), *training]
    undisturbed, killed = (KillableRun(command, folder / name, PROGRAM) for name in ("undisturbed", "killed"))
    logger.info("twice: %s", shlex.join(command), extra=IN_ONE_LINE)
    pace, chance = measure(undisturbed), random.Random(arguments.seed)
    kills = plan_kills(arguments.kills, pace, chance, has_parts=arguments.launcher != "python3")
    report(pace, kill_again_and_again(killed, kills, pace, chance), killed.resume_seconds, folder)


def split_command_line(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of this tool, and those of pretrain.py: the recipe and everything after `--`."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    own, training = list(argv[:cut]), list(argv[cut + 1 :])
    recipe = []
    for place, word in enumerate(own):
        if word.partition("=")[0] == "--recipe":
            recipe = own[place : place + (1 if "=" in word else 2)]
            del own[place : place + len(recipe)]
            break
    return own, [*recipe, *training]


def new_folder(folder: Path | None) -> Path:
    """Create the folder for both runs."""
    folder = folder or Path(f"runs/resume_proof-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be created ({error.strerror}); choose another") from None
    return folder


def launch_command(arguments: ProofArguments) -> list[str]:
    """The command up to pretrain.py."""
    if arguments.launcher == "python3":
        return [sys.executable]
    num_processes = arguments.num_gpus or len(driver_gpu_names()) or 2
    command = DEEPSPEED if arguments.launcher == "deepspeed" else [sys.executable, "-m", "torch.distributed.run"]
    count = "--num_gpus" if arguments.launcher == "deepspeed" else "--nproc_per_node"
    return [*command, f"{count}={num_processes}", f"--master_port={free_port()}"]  # other runs may use the default


def measure(run: KillableRun) -> Pace:
    """Train without interruption, and measure the durations that kills are planned by."""
    run.start()
    run.wait_until(lambda: run.newest_step() > 0)
    first_at = time.monotonic()
    saves, save_started_at, last_step, last_at = [0.0], None, 0, first_at
    while run.wait_seconds(0.0):
        now = time.monotonic()
        save_started_at = (save_started_at or now) if run.is_saving() else None
        saves.append(0.0 if save_started_at is None else now - save_started_at)
        if run.newest_step() > last_step:
            last_step, last_at = run.newest_step(), now
    check_end(run)
    num_steps = run.newest_step()
    step_seconds = (last_at - first_at) / max(1, num_steps - 1)
    start_seconds, total_seconds = first_at - run.started_at, time.monotonic() - run.started_at
    message = "undisturbed: %d steps in %.0f s, the first one after %.0f s: %s"
    logger.info(message, num_steps, total_seconds, start_seconds, run.run_dir)
    return Pace(num_steps, start_seconds, step_seconds, max(saves), time.monotonic() - last_at)


def plan_kills(num_kills: int, pace: Pace, chance: random.Random, *, has_parts: bool) -> list[Kill]:
    """Moments in order of steps: a third during saves, a sixth during the start, the others anywhere."""
    moments: list[Literal["start", "step", "save"]] = ["save", "step", "start", "save", "step", "step"]
    kills = []
    for number in range(num_kills):
        moment = moments[number % len(moments)]
        part: Part = chance.choice(["everything", "a rank", "the launcher"]) if has_parts else "everything"
        trained = chance.uniform(0, pace.num_steps * pace.step + pace.end)
        step = min(int(trained / pace.step), pace.num_steps)
        seconds = {
            "start": chance.uniform(0, pace.start),
            "step": trained - step * pace.step,
            "save": chance.uniform(0, pace.longest_save),
        }
        kills.append(Kill(moment, min(step, pace.num_steps - (moment == "save")), seconds[moment], part))
    return sorted(kills, key=lambda kill: kill.step)


def kill_again_and_again(run: KillableRun, kills: Sequence[Kill], pace: Pace, chance: random.Random) -> list[Killed]:
    """Restart the run until it finishes; each start but the last is killed, unless it ends before."""
    killed: list[Killed] = []
    for number, kill in enumerate(kills, 1):
        run.start()
        if not wait_for_moment(run, kill, pace):
            break
        reached, was_saving = run.newest_step(), run.is_saving()
        run.kill(kill.part, chance)
        killed.append(Killed(kill.part, reached, max(0, reached - run.newest_checkpoint()), was_saving))
        when = "during the start" if reached < 0 else f"after step {reached}"
        what = f"{kill.part} {when}{', during a save' * was_saving}"
        logger.info("kill %d of %d: %s; resuming from step %d", number, len(kills), what, run.newest_checkpoint())
    else:
        run.start()
    run.wait_until(lambda: False)
    check_end(run)
    return killed


def wait_for_moment(run: KillableRun, kill: Kill, pace: Pace) -> bool:
    """Wait for the moment of a kill, or after the last save for the end; False if the run ends before."""
    if kill.moment != "start" and not run.wait_until(lambda: run.newest_step() >= kill.step):
        return False
    if kill.moment == "save" and not run.wait_until(lambda: run.has_started_saving(pace.num_steps)):
        return False
    return run.wait_seconds(kill.seconds)


def check_end(run: KillableRun) -> None:
    """Exit if the run failed without a kill."""
    if run.exit_code != 0:
        logger.error("the run failed without a kill, exit code %d: %s", run.exit_code, run.log_path)
        exit_process(DIFFERENT_EXIT_CODE)


def report(pace: Pace, killed: Sequence[Killed], resume_seconds: Sequence[float], folder: Path) -> None:
    """Log the result; exit with code 1 if the runs differ."""
    num_saves = sum(kill.was_saving for kill in killed)
    what = f"{len(killed)} kills ({num_saves} during a save), {pace.num_steps} steps"
    record = json.loads((folder / "undisturbed" / RUN_RECORD_NAME).read_text(encoding="utf-8"))
    tolerance = GPU_TOLERANCE if record["hardware"]["gpu"] else 0.0
    difference = first_difference(folder / "undisturbed", folder / "killed", relative=tolerance)
    if difference is not None:
        logger.error("%s: the runs differ: %s", what, difference)
        exit_process(DIFFERENT_EXIT_CODE)
    result = "losses, gradient norms, evaluations and weights bit-equal"
    if tolerance:
        result = f"losses, gradient norms and evaluations equal to {tolerance:g} of each, as kernels of a GPU allow"
    logger.info("%s: %s", what, result)
    lost = [kill.lost_steps for kill in killed] or [0]
    logger.info("steps repeated: %.1f per kill, %d at most", sum(lost) / len(lost), max(lost))
    if resume_seconds:
        mean = sum(resume_seconds) / len(resume_seconds)
        logger.info("from a start to the next new step: %.1f s, %.1f s at most", mean, max(resume_seconds))


if __name__ == "__main__":
    run_program(main)
