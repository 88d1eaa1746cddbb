"""The command of a run: by which launcher, with how many processes, and without what a launcher's flags may hide."""

import sys

import pytest

from pretraining.runs import command


@pytest.mark.parametrize(
    ("above", "sizes", "expected"),
    [
        ([], (1, 1), "python3"),
        ([], (4, 4), "WORLD_SIZE=4 python3"),
        (["/opt/bin/torchrun", "--nnodes=2", "SECRET=1"], (4, 2), "torchrun --nnodes=2 --nproc_per_node=2"),
        (["python3", "-m", "deepspeed.launcher.launch"], (2, 2), "deepspeed --num_gpus=2"),
        (["prterun", "-x", "KEY=1", "-n", "4"], (4, 2), "mpirun -n 4"),
    ],
)
def test_the_launcher_is_named_with_the_number_of_processes(
    above: list[str], sizes: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/suite/pretrain.py", "--local_rank=0", "--seed", "7"])
    monkeypatch.setattr(command, "_commands_above", lambda: iter([[*above, "/suite/pretrain.py"]]))
    for name, size in zip(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), sizes, strict=True):
        monkeypatch.setenv(name, str(size))
    assert command.command() == f"{expected} pretrain.py --seed 7"


def test_the_first_program_above_that_is_a_launcher_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bash", "-c", "torchrun of a friend"], ["accelerate", "launch", "pretrain.py"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    monkeypatch.setattr(command, "_commands_above", lambda: iter(words))
    assert command.command().startswith("accelerate launch --num_processes=")
