"""Start programs with odd command lines, hundreds of them in one process, which imports torch once.

    python -m tests.adversarial.drivers.command_lines < rows.jsonl > outcomes.jsonl

A row is [program, words], an outcome how it ended and what was said. Of a run it is all that comes before its model is
made: flags decide nothing later.
"""

import contextlib
import faulthandler
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch

import pretrain
from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.preprocess import PreprocessArguments, TokenizerArguments
from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.cli.program import _as_user_error as as_user_error
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.generation.sampling import random_numbers, sample_tokens
from pretraining.training.config.run_config import resolve_run_config
from pretraining.training.config.trainer_arguments import make_training_arguments
from pretraining.training.distributed.process_group import init_process_group
from pretraining.training.dry_run.dry_run import print_plan
from pretraining.training.run import quiet_libraries
from pretraining.training.stopping.request import TimeLimit
from tools.evaluate import EvaluationArguments
from tools.resume_proof import ProofArguments
from tools.trace import TraceArguments

SECONDS = 6.0  # of one row; the slowest takes one
DANGEROUS = ("os.system", "os.exec", "os.posix_spawn", "os.remove", "os.rmdir", "os.rename", "shutil.rmtree")
DANGEROUS += ("subprocess.Popen", "socket.connect")
DATACLASSES: dict[str, Any] = {
    "preprocess": PreprocessArguments,
    "train_tokenizer": TokenizerArguments,
    "trace": TraceArguments,
    "evaluate": EvaluationArguments,
    "resume_proof": ProofArguments,
}


class TooSlowError(BaseException):
    """A row takes longer than it may; no `except Exception` keeps it."""


def main() -> None:
    """Answer each row."""
    quiet_libraries()
    actions: list[str] = []
    sys.addaudithook(lambda event, _: actions.append(event) if event in DANGEROUS else None)
    signal.signal(signal.SIGPROF, _stop)
    for line in sys.stdin:
        program, words = json.loads(line)
        actions.clear()
        outcome = {**outcome_of(program, words), "actions": sorted(set(actions))}
        sys.__stdout__.write(json.dumps(outcome) + "\n")
        sys.__stdout__.flush()


def outcome_of(program: str, words: Sequence[str]) -> dict[str, Any]:
    """How a row ended: `refused` with the problems, `accepted` with what it means, `crashed`, or `hung`."""
    start = time.monotonic()
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)  # of a sleep, or where Python does not see the signal
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing, however busy the machine is
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found: tuple[str, Any] = ("accepted", PROGRAMS[program](words))
    except TooSlowError:
        found = ("hung", None)
    except BaseException as error:  # SystemExit of argparse too
        mistake = as_user_error(error) if isinstance(error, Exception) else None
        found = ("crashed", f"{type(error).__name__}: {error}") if mistake is None else ("refused", mistake.problems)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    return {"how": found[0], "what": found[1], "seconds": round(time.monotonic() - start, 2)}


def plan(words: Sequence[str]) -> None:
    """pretrain.py --dry_run."""
    print_plan(parse_pretrain_arguments("", ["--dry_run", *words]))


def run(words: Sequence[str]) -> dict[str, Any]:
    """pretrain.py, up to where the model is made."""
    return _before_joining(parse_pretrain_arguments("", words))


def _before_joining(arguments: PretrainArguments) -> dict[str, Any]:
    planned = resolve_run_config(arguments, pretrain.find_data(arguments.data))
    TimeLimit(arguments.durability.max_hours).description()
    timedelta(seconds=arguments.trainer["ddp_timeout"])
    if not torch.distributed.is_initialized():
        init_process_group(timeout_seconds=600)
    make_training_arguments(
        planned.arguments.trainer,
        run_dir=planned.run_dir,
        ds_config=planned.ds_config,
        batch=planned.batch,
        num_steps=planned.num_steps,
        precision=planned.precision,
    )
    schedule = planned.schedule
    return {
        "steps": planned.num_steps,
        "warmup": schedule.warmup_steps,
        "last_rate": schedule.learning_rate(planned.num_steps),
        "folder": str(planned.run_dir),
    }


def generate(words: Sequence[str]) -> dict[str, Any]:
    """generate.py: its flags, and a token that is drawn with them."""
    arguments: GenerateArguments = _parsed(GenerateArguments, words)
    logits = torch.linspace(-30, 30, 1000).repeat(2, 1)
    return {"tokens": sample_tokens(logits, random_numbers(arguments.seed, 0, 0, count=2), arguments).tolist()}


def _parsed(kind: Any, words: Sequence[str]) -> Any:
    (arguments,) = parse_recipe("", [dataclass_group("Flags", kind)], words)
    return arguments


def _parser_of(kind: Any) -> Callable[[Sequence[str]], None]:
    def parse(words: Sequence[str]) -> None:
        _parsed(kind, words)

    return parse


def _stop(number: int, frame: Any) -> None:
    raise TooSlowError


def _finetune(words: Sequence[str]) -> None:
    parse_finetune_arguments("", ["--model", "model", "--data_files", "chat.jsonl", *words])


def _parse(words: Sequence[str]) -> None:
    parse_pretrain_arguments("", words)


PROGRAMS: dict[str, Callable[[Sequence[str]], Any]] = {
    "plan": plan,
    "run": run,
    "pretrain": _parse,
    "finetune": _finetune,
    "generate": generate,
    **{name: _parser_of(kind) for name, kind in DATACLASSES.items()},
}


if __name__ == "__main__":
    main()
