"""Compare pretrain.py with plain PyTorch and the plain Trainer: separate programs whose steps alternate.

All are started at once (benchmarks/peers_run.py) and only one of them makes a step at a time, so that a slowdown of the
machine affects all of them. The order rotates by one in each round. The time of a step is from the message that starts
it to the message that it is finished, including data, log and callbacks.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.results import PROJECT_DIR, command_line, hardware, num_cores, table, versions
from pretraining.errors import UserError
from pretraining.system.launchers import DEEPSPEED, free_port
from pretraining.training.config.trainer_arguments import has_fast_bf16
from pretraining.training.model.fields import load_presets

PACKAGES = ("torch", "deepspeed", "transformers")
EXPLAINED = """\
Separate programs whose steps alternate: a loop over transformers' Llama with fused AdamW; the Trainer, as run_clm.py of
transformers uses it; and pretrain.py, which logs every step and computes the loss in 4 tiles. Programs of one process
have a thread per core; waiting threads sleep (OMP_WAIT_POLICY). **time** is compared within a round, so a slowdown of
the machine affects all programs. **processor time** excludes waiting and other programs. For two processes it is twice
that of the first."""
REFERENCE = "plain Trainer"
WARM_UP_ROUNDS = 1
POLL_SECONDS = 1.0
OURS = "pretrain.py"


class Size(NamedTuple):
    """A model, and the blocks of a step."""

    name: str
    overrides: dict[str, int]
    num_blocks: int
    block_length: int


SIZES = (
    Size("4 layers, 192 wide, vocabulary 8,192, 8 blocks of 256", {}, 8, 256),
    Size(
        "4 layers, 256 wide, vocabulary 32,000, 8 blocks of 512",
        {"hidden_size": 256, "intermediate_size": 688, "vocab_size": 32000},
        8,
        512,
    ),
)


class Arm(NamedTuple):
    """A program and how it is started."""

    name: str
    program: str
    num_processes: int = 1
    flags: tuple[str, ...] = ()


TILES = ("--loss_tiles", "4")
ARMS = (
    Arm("plain loop", "plain loop"),
    Arm(REFERENCE, REFERENCE),
    Arm("pretrain.py, 1 process", OURS, 1, (*TILES, "--compile_layers", "false")),
    Arm("the same, --compile_layers", OURS, 1, (*TILES, "--compile_layers", "true")),
    Arm("pretrain.py, 2 processes", OURS, 2, (*TILES, "--compile_layers", "false")),
)


def compare_with_peers(*, num_rounds: int) -> Iterator[tuple[str, str]]:
    """Title and text of a section for each size and precision; bf16 only on processors with bf16 instructions."""
    source = f"{hardware()}; {versions(PACKAGES)}.\n\n{command_line('overhead')}"
    for size in SIZES:
        for precision in ("fp32", "bf16") if has_fast_bf16(has_gpu=False) else ("fp32",):
            found = turns_table(take_turns(size, precision, num_rounds=num_rounds))
            load = f"{num_rounds} rounds; load average {os.getloadavg()[2]:.1f} over the last 15 minutes."
            yield f"Beside plain PyTorch: {size.name}, {precision}", "\n\n".join([source, EXPLAINED, load, found])


def take_turns(size: Size, precision: str, *, num_rounds: int) -> np.ndarray:
    """Seconds and processor seconds of steps, of shape [num_rounds, arms, 2]; a round is one step of each.

    Raises:
        UserError: if a program ended; with the end of its log.
    """
    num_steps = 1 + WARM_UP_ROUNDS + num_rounds
    with ExitStack() as stack:
        programs = [stack.enter_context(_started(arm, size, precision, num_steps)) for arm in ARMS]
        for program in programs:
            program.connect()
        seconds = np.empty((WARM_UP_ROUNDS + num_rounds, len(ARMS), 2))
        for number in range(len(seconds)):
            for place in np.roll(np.arange(len(ARMS)), -number):
                seconds[number, place] = programs[place].step()
        for program in programs:
            program.end()
    return seconds[WARM_UP_ROUNDS:]


@dataclass
class Program:
    """A program that waits for its turns."""

    arm: Arm
    child: subprocess.Popen
    server: socket.socket
    log: Path
    connection: socket.socket | None = None
    processor_seconds: float = 0.0  # of its first process, until its last turn

    def connect(self) -> None:
        """Wait for the end of the first step."""
        self.server.settimeout(POLL_SECONDS)
        while self.connection is None:
            self._check(self.child.poll() is None)
            with suppress(TimeoutError):
                self.connection, _ = self.server.accept()
        self._hear()

    def step(self) -> tuple[float, float]:
        """Make one step; its wall-clock and CPU seconds."""
        assert self.connection is not None
        started_at, before = time.perf_counter(), self.processor_seconds
        self.connection.send(b"g")
        self._hear()
        return time.perf_counter() - started_at, self.arm.num_processes * (self.processor_seconds - before)

    def end(self) -> None:
        """Let the program end."""
        assert self.connection is not None
        self.connection.send(b"g")
        self.child.wait()
        self._check(self.child.returncode == 0)

    def _hear(self) -> None:
        assert self.connection is not None
        self.connection.settimeout(None)
        answer = self.connection.recv(8)
        self._check(len(answer) == 8)
        (self.processor_seconds,) = struct.unpack("d", answer)

    def _check(self, is_fine: bool) -> None:
        if not is_fine:
            raise UserError(f"{self.arm.name} failed: {self.log.read_text(errors='replace')[-2000:]}")


@contextmanager
def _started(arm: Arm, size: Size, precision: str, num_steps: int) -> Iterator[Program]:
    """Start the program; at the end kill it if it still runs."""
    task = {
        "program": arm.program,
        "model": {**load_presets()["quickstart"], **size.overrides},
        "num_blocks": size.num_blocks,
        "block_length": size.block_length,
        "num_steps": num_steps,
        "precision": precision,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log").open("w") as log,
        socket.socket(socket.AF_UNIX) as server,
    ):
        address = f"{folder}/turns"
        server.bind(address)
        server.listen()
        words = [*_launcher(arm), address, json.dumps(task)]
        words += _flags(arm, size, precision, Path(folder) / "run", num_steps) if arm.program == OURS else []
        # libgomp's threads spin where they wait, unless there are more than cores, as in pretrain.py. On a busy machine
        # a step of the plain loop then takes 3 to 4 s of the processors in place of 0.7. Here none spins.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(max(1, num_cores() // arm.num_processes)),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        child = subprocess.Popen(words, stdout=log, stderr=log, cwd=PROJECT_DIR, env=environment)
        try:
            yield Program(arm, child, server, Path(log.name))
        finally:
            child.terminate()
            child.wait()


def _launcher(arm: Arm) -> list[str]:
    if arm.num_processes == 1:
        return [sys.executable, "-m", "benchmarks.peers_run"]
    size, port = f"--num_gpus={arm.num_processes}", f"--master_port={free_port()}"
    return [*DEEPSPEED, size, port, "--module", "benchmarks.peers_run"]


def _flags(arm: Arm, size: Size, precision: str, run_dir: Path, num_steps: int) -> list[str]:
    """The flags of pretrain.py, which logs every step with all metrics, as in a user's run."""
    words: dict[str, list[object]] = {
        "--model": ["quickstart"],
        "--model_overrides": [f"{name}={value}" for name, value in {"vocab_size": 8192, **size.overrides}.items()],
        "--dataset": ["synthetic"],
        "--vocab_size": [size.overrides.get("vocab_size", 8192)],
        "--block_length": [size.block_length],
        "--global_batch_tokens": [size.num_blocks * size.block_length],
        "--per_device_train_batch_size": [size.num_blocks // arm.num_processes],
        "--max_steps": [num_steps],
        "--warmup_steps": [0],
        "--bf16": [precision == "bf16"],
        "--logging_steps": [1],
        "--output_dir": [run_dir],
        "--eval_strategy": ["no"],
        "--save_strategy": ["no"],
        "--export": [False],
        "--report": [False],
    }
    return [str(word) for name, values in words.items() for word in (name, *values)] + list(arm.flags)


def turns_table(seconds: np.ndarray) -> str:
    """Both times of each program relative to the reference in the same round."""
    ratios = seconds / seconds[:, [[arm.name for arm in ARMS].index(REFERENCE)]]
    titles = ["program", f"time / {REFERENCE}", "its quartiles", f"processor time / {REFERENCE}", "its quartiles"]
    rows = []
    for place, arm in enumerate(ARMS):
        cells = [arm.name]
        for low, middle, high in np.quantile(ratios[:, place], [0.25, 0.5, 0.75], axis=0).T:
            cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
        rows.append(cells)
    return table(titles, rows)
