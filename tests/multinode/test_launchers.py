"""Each launcher on two hosts: the run is that of one host to the bit, and what one host lacks ends both in one line."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pretraining.system.launchers import DEEPSPEED
from tests.conftest import PROJECT_DIR, Done, wait_until
from tests.multinode.hosts import ADDRESSES, NAMES, NODE_A, NODE_B, HostProcess, TwoHosts
from tests.multinode.preloaded_tasks import PreloadedTasks, slurm_task
from tests.programs.launching import figures, records, train, training_flags

pytestmark = pytest.mark.launch

END_SECONDS = 120.0  # until all have ended; a busy machine takes a minute for the imports alone
BIN, ADDRESS = Path(sys.executable).parent, ADDRESSES[NODE_A]
STEPS = ("--max_steps", 3, "--save_steps", 2, "--eval_strategy", "no")


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Hosts as Debian installs them: to itself each is 127.0.1.1, which the other cannot reach."""
    with TwoHosts(tmp_path_factory.mktemp("machines") / "hosts") as hosts:
        hosts.name_as_debian()
        yield hosts


@pytest.fixture(scope="module")
def tasks(two_hosts: TwoHosts, tmp_path_factory: pytest.TempPathFactory) -> PreloadedTasks:
    return PreloadedTasks(two_hosts, tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def on_one_host(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two ranks on one machine."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    train("2 ranks", sample_store, run_dir, *STEPS)
    return run_dir


def start(name: str, hosts: TwoHosts, words: Sequence[object], envs: Sequence[dict[str, str]]) -> list[HostProcess]:
    """What a user types for a launcher, on the first host or on both."""
    hostfile, program = f"--hostfile={hosts.hostfile()}", [sys.executable, *words]
    static = [f"--master_addr={ADDRESS}", "--master_port=29511"]
    torchrun = [BIN / "torchrun", "--nnodes=2", "--nproc_per_node=1"]
    on_both: dict[str, Callable[[int], list[object]]] = {
        "no_ssh": lambda rank: [*DEEPSPEED, hostfile, "--no_ssh", f"--node_rank={rank}", *static, *words],
        "torchrun": lambda rank: [
            *torchrun,
            f"--node_rank={rank}",
            *static,
            *words,
        ],
        "c10d": lambda _: [*torchrun, "--rdzv_backend=c10d", f"--rdzv_endpoint={NODE_A}:29512", *words],
        "srun": lambda _: program,
    }
    if name in on_both:
        tasks = [slurm_task(rank) if name == "srun" else {} for rank in range(2)]
        return [
            hosts.run(host, on_both[name](rank), env={**envs[rank], **tasks[rank]}) for rank, host in enumerate(NAMES)
        ]
    passed = [word for variable in envs[0] for word in ("-x", variable)]
    on_first = {
        "deepspeed": [*DEEPSPEED, hostfile, *words],
        "mpirun": [BIN / "mpirun", "--allow-run-as-root", "--host", ",".join(NAMES), "-n", 2, *passed, *program],
    }
    return [hosts.run(NODE_A, on_first[name], env=envs[0])]


def command(store: Path, run_dir: Path, *flags: object, script: str = "pretrain.py") -> list[object]:
    return [PROJECT_DIR / script, *training_flags(store, run_dir, *STEPS, *flags)]


def launch(
    name: str,
    hosts: TwoHosts,
    store: Path,
    run_dir: Path,
    *flags: object,
    env_of_b: dict[str, str] | None = None,
) -> list[Done]:
    """The ends of what was typed; nothing of the run may be left on a host."""
    words = command(store, run_dir, *flags)
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_DIR), "DS_ACCELERATOR": "cpu"}
    started = start(name, hosts, words, [env, {**env, **(env_of_b or {})}])
    done = [process.done(END_SECONDS) for process in started]
    left = [line for host in NAMES for line in hosts.commands(host) if "pretrain.py" in line]
    assert left == [], "\n".join(each.output[-3000:] for each in done)
    return done


def assert_trained(done: Sequence[Done]) -> None:
    assert [each.returncode for each in done] == [0] * len(done), "\n".join(each.output[-4000:] for each in done)


def assert_both_left(done: Sequence[Done], line: str) -> None:
    """Both hosts end with the line, with no other error and no traceback."""
    assert all(each.returncode for each in done), "\n".join(each.output[-4000:] for each in done)
    for each in done:
        errors = [found for found in each.output.splitlines() if found.startswith("error: ")]
        assert len(errors) == 1, each.output[-4000:]
        assert errors[0].startswith(f"error: {line}")
        assert each.output.count("Traceback") == each.output.count("bin/torchrun"), "torchrun writes one itself"


def weights(run_dir: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run_dir / "model/model.safetensors").items()}


@pytest.fixture(scope="module")
def on_two_hosts(tasks: PreloadedTasks, sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a task of `srun` on each host."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    assert_trained(tasks.run(command(sample_store, run_dir)))
    return run_dir


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert figures(run_dir) == figures(other)
    assert weights(run_dir) == weights(other)


@pytest.mark.guarantee("Two machines train as one machine with as many ranks does, to the bit, with each launcher.")
def test_two_hosts_are_as_one_host_with_two_ranks(on_two_hosts: Path, on_one_host: Path) -> None:
    assert_same_run(on_two_hosts, on_one_host)
    machines = json.loads((on_two_hosts / "run.json").read_text())["hardware"]["machines"]
    assert [(machine["host"], machine["num_processes"]) for machine in machines] == [(NODE_A, 1), (NODE_B, 1)]
    assert all(machine["memory_bytes"] > 1e9 and machine["gpus"] == [] for machine in machines)


# Tasks of srun train in test_two_hosts_are_as_one_host_with_two_ranks, `deepspeed --hostfile` in test_ends.py until a
# host dies. All that launchers do is to set the variables of a rank.
@pytest.mark.long
@pytest.mark.parametrize("name", ["deepspeed", "no_ssh", "torchrun", "c10d", "mpirun", "srun"])
def test_a_launcher_on_two_hosts(
    name: str, two_hosts: TwoHosts, sample_store: Path, on_one_host: Path, tmp_path: Path
) -> None:
    done = launch(name, two_hosts, sample_store, tmp_path / "run")
    assert_trained(done)
    assert_same_run(tmp_path / "run", on_one_host)
    assert "machine: node-b (1 process, " in done[0].output


@pytest.mark.guarantee("A checkpoint of two machines is resumed on one, and one of one machine on two, to the bit.")
def test_checkpoints_move_between_one_host_and_two(
    tasks: PreloadedTasks, sample_store: Path, on_one_host: Path, on_two_hosts: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    resumed = ("--resume", on_two_hosts / "checkpoint-2")
    train("2 ranks", sample_store, one, *STEPS, *resumed)
    assert_trained(tasks.run(command(sample_store, two, "--resume", on_one_host / "checkpoint-2")))
    for run_dir in (one, two):
        assert_same_run(run_dir, on_one_host)


@pytest.mark.guarantee("A run folder that machines do not share is an error at the start, on each of them.")
def test_a_run_folder_that_is_not_shared(
    two_hosts: TwoHosts, tasks: PreloadedTasks, sample_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    own = two_hosts.private(NODE_B, run_dir)
    done = tasks.run(command(sample_store, run_dir, script="tests/faults/drivers/split_folder_run.py"))
    assert_both_left(done, f"--output_dir {run_dir}: is not the same folder on node-b: process 1 does not see what ")
    assert not (run_dir / "run.json").exists()
    assert not (own / "run.json").exists()


@pytest.mark.guarantee("What only one machine lacks ends the processes of all machines, with its host in one line.")
@pytest.mark.parametrize(
    "lacks", [*(pytest.param(what, marks=pytest.mark.long) for what in ("blocks", "same blocks")), "same version"]
)
def test_what_one_host_lacks_ends_both(lacks: str, two_hosts: TwoHosts, sample_store: Path, tmp_path: Path) -> None:
    store, env = shutil.copytree(sample_store, tmp_path / "blocks"), {}
    if lacks == "same version":
        (tmp_path / "accelerate-0.0.1.dist-info").mkdir()
        (tmp_path / "accelerate-0.0.1.dist-info/METADATA").write_text("Name: accelerate\nVersion: 0.0.1\n")
        env = {"PYTHONPATH": f"{tmp_path}:{PROJECT_DIR}"}
        line = "node-b: has another version of accelerate (0.0.1; node-a has "
    else:
        own = two_hosts.private(NODE_B, store)
        line = f"node-b: --dataset {store}: not a block store (manifest.json is missing); "
    if lacks == "same blocks":
        shutil.copytree(sample_store, own, dirs_exist_ok=True)
        manifest = own / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n")
        line = f"node-b: --dataset {store}: has other blocks (SHA-256 of manifest.json "
    done = launch("torchrun" if lacks == "blocks" else "srun", two_hosts, store, tmp_path / "run", env_of_b=env)
    assert_both_left(done, line)


@pytest.mark.guarantee("Another flag on one machine ends the processes of all before the first step, in one line.")
def test_another_flag_on_one_host_ends_both(tasks: PreloadedTasks, sample_store: Path, tmp_path: Path) -> None:
    """Paths and the number of workers may differ."""
    (tmp_path / "mount").symlink_to(tmp_path)
    of_b = ["--output_dir", tmp_path / "mount/run", "--dataloader_num_workers", 1, "--learning_rate", 0.001]
    done = tasks.run(command(sample_store, tmp_path / "run", "--learning_rate", 0.002), of_b)
    assert_both_left(done, "node-b: --learning_rate: is 0.001; node-a has 0.002; type the same flags on all machines")


@pytest.mark.guarantee("When the link between machines is cut, all processes end within a minute.")
def test_a_link_is_cut(two_hosts: TwoHosts, tasks: PreloadedTasks, sample_store: Path, tmp_path: Path) -> None:
    """One that breaks 1 s later."""
    flags = ["--max_steps", 100_000, "--save_steps", 100_000]
    tasks.start(command(sample_store, tmp_path / "run", *flags, script="tests/multinode/quick_answer_run.py"))
    log = tmp_path / "run/metrics.jsonl"
    wait_until(lambda: log.exists() and len(records(log.parent)) >= 2)
    two_hosts.cut_link()
    cut_at = time.monotonic()
    try:
        done = tasks.ends()
    finally:
        two_hosts.restore_link()
    assert time.monotonic() < cut_at + 60
    assert all(each.returncode for each in done)
    assert done[0].output.count("node-b of this run is gone (no answer for 30 s), stopping; rerun to resume") == 1
