"""The image of the Dockerfile, built as a folder: its default command, runs of its user, and a stop of the container.

What a container engine adds is not tested here: the real base image, layers, networks, GPUs.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jsonlines
import pytest

from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import METRICS_NAME
from tests.conftest import HANG_SECONDS, TINY_RUN
from tests.programs.container.chroot import RELEASE, Build, Image, process_1

pytestmark = [pytest.mark.long, pytest.mark.launch, pytest.mark.timeout(3600)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UID = 1234
RUN = [*TINY_RUN, "--dataset", "synthetic", "--block_length", "64", "--global_batch_blocks", "8", "--report", "false"]
RUN += ["--per_device_train_batch_size", "2", "--use_cpu"]
LAUNCHERS = {
    "deepspeed": "deepspeed --log_level=warning --num_gpus=2".split(),  # as users of the image type it
    "torchrun": "torchrun --nproc_per_node=2".split(),
    "mpirun": "mpirun -n 2 python3".split(),
}


def why_not_here() -> str | None:
    """What is missing to build the image on this machine."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("mmdebstrap") is None:
        return "needs mmdebstrap"
    probe = ["mmdebstrap", "--quiet", "--simulate", "--variant=minbase", RELEASE, "/nowhere"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"mmdebstrap finds no packages: {done.stderr.strip()[-200:]}" if done.returncode != 0 else None


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    missing = why_not_here()
    if missing is not None:
        pytest.skip(f"building the image {missing}")
    given = os.environ.get("CONTAINER_DIR")  # of a build that is kept
    work = tmp_path_factory.mktemp("image") if given is None else Path(given)
    try:
        yield Build(work, {"COMMIT": f"{COMMIT}-dirty", "UID": f"{UID}"}).build()
    finally:
        if given is None:
            shutil.rmtree(work)  # 3 GB


def run_in(image: Image, *command: str) -> str:
    """Run a command to its end; returns what it said."""
    with image.running("env", "DS_ACCELERATOR=cpu", *command) as started:
        output = started.communicate(timeout=HANG_SECONDS)[0]
    assert started.returncode == 0, output[-6000:]
    return output


def steps_of(run_dir: Path) -> list[int]:
    path = run_dir / METRICS_NAME
    if not path.exists():
        return []
    with jsonlines.open(path) as records:
        return [record["step"] for record in records if "loss" in record]


def test_the_default_command_is_the_doctor(image: Image) -> None:
    with image.running() as started:
        output = started.communicate(timeout=HANG_SECONDS)[0]
    assert started.returncode in (0, 1), output  # 1: a finding about this machine
    software, _, others = output.partition("\nhost\n")
    assert "packages in the versions tested" in software
    assert " failure " not in software
    assert "cannot be written" not in others


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_launcher_trains_as_the_named_user(launcher: str, image: Image) -> None:
    words = [*LAUNCHERS[launcher], "pretrain.py", *RUN, "--max_steps", "2", "--output_dir", f"runs/{launcher}"]
    assert run_in(image, "id", "-un").strip() == "trainer"
    run_in(image, *words)
    run_dir = image.root / "suite/runs" / launcher
    assert steps_of(run_dir) == [1, 2]
    assert (run_dir / "run.json").stat().st_uid == UID
    assert read_run_record(run_dir)["git"] == {"commit": COMMIT, "is_dirty": True}


def test_what_is_compiled_finds_its_compiler(image: Image) -> None:
    words = ["python3", "pretrain.py", *RUN, "--max_steps", "1", "--compile_layers", "true"]
    run_in(image, *words, "--output_dir", "runs/compiled")
    assert steps_of(image.root / "suite/runs/compiled") == [1]


@pytest.mark.guarantee("Stopping a container saves a checkpoint, from which the same command resumes.")
def test_a_stop_of_the_container_saves(image: Image) -> None:
    """SIGTERM to process 1: each rank has it from tini and from the launcher, which counts as one request."""
    words = ["env", "DS_ACCELERATOR=cpu", *LAUNCHERS["deepspeed"], "pretrain.py", *RUN]
    words += ["--max_steps", "5000", "--save_steps", "5000", "--eval_strategy", "no", "--output_dir", "runs/stopped"]
    run_dir = image.root / "suite/runs/stopped"
    with image.running(*words) as started:
        deadline = time.monotonic() + HANG_SECONDS
        while len(steps_of(run_dir)) < 3:
            assert started.poll() is None, started.communicate()[0][-6000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert process_1(started).name() == "tini"
        process_1(started).send_signal(signal.SIGTERM)
        output = started.communicate(timeout=HANG_SECONDS)[0]
    assert started.returncode != 0
    assert "Traceback" not in output
    (checkpoint,) = run_dir.glob("checkpoint-*")
    assert (checkpoint / "complete.json").exists(), output[-6000:]
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"stopped at step {step} (SIGTERM)" in output.replace("\n    ", " "), output[-6000:]
    resumed = run_in(image, *words[2:], "--max_steps", f"{step + 1}", "--schedule_steps", "5000")
    assert f"resuming from runs/stopped/{checkpoint.name}" in resumed
