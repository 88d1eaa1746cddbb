"""What tests share: a small block store, child processes started as users start them, real data where it stands."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pretraining.system.cores import usable_cores
from pretraining.system.host import available_host_bytes
from pretraining.system.torch_environment import compiler_problem
from tests.fakes.hub import LocalHub, running_hub

PROJECT_DIR = Path(__file__).parents[1]
# A hang guard, and no claim about speed: far more than what is waited for takes on one busy core, and less than the
# timeout of a test.
HANG_SECONDS = 500.0
WORKER_BYTES = 3 * 10**9
CANNOT_COMPILE = compiler_problem()
needs_compiler = pytest.mark.skipif(CANNOT_COMPILE is not None, reason=str(CANNOT_COMPILE))
REAL_DATA_DIR = PROJECT_DIR.parent / "shared" / "data"
REAL_FILES = ("news.jsonl", "llama2/tokenizer.json")
# A model of 60,000 parameters in fp32: a step takes milliseconds, start-up is all the time there is.
TINY_MODEL = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "num_attention_heads=4"]
TINY_MODEL += ["num_key_value_heads=2", "max_position_embeddings=128"]
TINY_RUN = ["--model", "quickstart", "--model_overrides", *TINY_MODEL, "--bf16", "false"]
TINY_RUN += ["--learning_rate", "1e-2", "--warmup_steps", "2"]

# A shell has what it starts in the background ignore Ctrl-C, and nohup the end of a terminal: so would each program
# that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _can_be_written(folder: Path) -> bool:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return os.access(existing, os.W_OK | os.X_OK)


# As users are told to do where the home folder is read-only; a folder of this process, which its workers share.
if "XDG_CACHE_HOME" not in os.environ and not _can_be_written(Path.home() / ".cache"):
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()


def pytest_xdist_auto_num_workers() -> int:
    """Two, or one for every two cores, if they have memory: a worker and what it starts take up to 2.5 GB.

    Four on two cores took as long: what tests start computes on both.
    """
    return max(1, min(max(2, usable_cores() // 2), 8, available_host_bytes() // WORKER_BYTES))


# What is imported while tests are collected is not garbage, and collections that visit it take a fifth of that time.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """After the collection; xdist's controller, which collects nothing, comes here as well."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """End the workers that a failed test still holds.

    They ignore the SIGTERM by which Python would end them as it exits, and it would wait for them without end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own handler raises for a worker that was killed
    for worker in multiprocessing.active_children():
        worker.kill()


@dataclass(frozen=True)
class Done:
    """A finished child process."""

    returncode: int
    stdout: str
    log: str  # stderr as it was written

    @property
    def stderr(self) -> str:
        """The log, its wrapped lines whole again."""
        return self.log.replace("\n    ", " ")

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


def assert_one_error(done: Done, *parts: str) -> None:
    """A user error: exit code not 0, one line with all `parts`, no traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.output
    assert len(done.errors) == 1, done.output
    assert all(part in done.errors[0] for part in parts), done.errors


def assert_nowhere(secret: str, done: Done, *folders: Path) -> None:
    """A secret stands neither in what a program said nor in any file."""
    assert secret not in done.output
    for folder in folders:
        for path in folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def run(
    *words: object,
    cwd: Path = PROJECT_DIR,
    timeout: float = HANG_SECONDS,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
) -> Done:
    """Start a program as a user would, in a separate process; `stdin` is piped into it, otherwise there is none."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", **(env or {})}
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        **source,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def wait_until(is_so: Callable[[], object], output: Callable[[], str] = str) -> None:
    """Wait for what comes however slow the machine is; `output` tells more if it does not."""
    hangs_at = time.monotonic() + HANG_SECONDS
    while not is_so():
        assert time.monotonic() < hangs_at, output()[-6000:]
        time.sleep(0.05)


def run_fine(*words: object, **options: object) -> Done:
    """Like `run`, for a program that must succeed."""
    done = run(*words, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.output[-6000:]
    return done


def python(script: str, *words: object) -> list[object]:
    """The command line of one of the programs."""
    return [sys.executable, PROJECT_DIR / script, *words]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Let torch compute in one thread: other tests use the other cores, and tiny matrices are slower in several."""
    if "torch" in sys.modules:  # some of the selected tests import it
        sys.modules["torch"].set_num_threads(1)


AttentionShapes = list[tuple[tuple[int, ...], tuple[int, ...]]]


@pytest.fixture
def attention_shapes(monkeypatch: pytest.MonkeyPatch) -> AttentionShapes:
    """The shapes of queries and keys [rows, heads, length, head_dim] of each attention that torch computes."""
    from torch.nn import functional

    shapes: AttentionShapes = []
    attend = functional.scaled_dot_product_attention

    def record(queries: Any, keys: Any, *args: Any, **options: Any) -> Any:
        shapes.append((queries.shape, keys.shape))
        return attend(queries, keys, *args, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", record)
    return shapes


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A Hub of this machine."""
    with running_hub() as local_hub:
        yield local_hub


@pytest.fixture(scope="session")
def sample_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus in blocks of 64 tokens."""
    store = tmp_path_factory.mktemp("sample") / "blocks"
    run_fine(*python("preprocess.py", "--block_length", 64, "--split", "90,5,5", "--output_dir", store))
    return store


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real Llama-2 tokenizer and real news, which stands beside some checkouts only."""
    missing = [name for name in REAL_FILES if not (REAL_DATA_DIR / name).is_file()]
    if missing:
        pytest.skip(f"{REAL_DATA_DIR} has no {', no '.join(missing)}")
    return REAL_DATA_DIR


@contextmanager
def mounted_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system in memory at `folder`, which is created; without the right to mount, the test is skipped."""
    folder.mkdir()
    skip_unless_mounted(run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def within_mount(mount: str) -> list[str]:
    """What starts a program in a separate name space with this mount; where that fails, the test is skipped."""
    within = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    skip_unless_mounted(run(*within, "true"))
    return within


def skip_unless_mounted(done: Done) -> None:
    """Skip the test with what mount or unshare says, if it failed."""
    if done.returncode:
        pytest.skip(f"cannot mount here: {' '.join(done.output.split())}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    with mounted_disk(tmp_path / "disk", megabytes=3) as folder:
        yield folder
