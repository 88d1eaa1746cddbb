"""Start training as users do, by each launcher, or in preloaded ranks, and read what it logged."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jsonlines

from pretraining.system.launchers import DEEPSPEED, free_port
from pretraining.system.processes import descendants
from tests.conftest import PROJECT_DIR, TINY_RUN, Done, python, run, run_fine

NUM_STEPS = 6
BLOCKS_PER_STEP = 8
BLOCK_LENGTH = 64
# The checkout, before what whoever starts the tests has put there.
SEARCH_PATH = os.pathsep.join([str(PROJECT_DIR), *filter(None, [os.environ.get("PYTHONPATH")])])


def launcher(name: str) -> list[object]:
    """What a user types before pretrain.py; two processes, one with python."""
    bin_dir, port = Path(sys.executable).parent, [f"--main_process_port={free_port()}"]
    return {
        "deepspeed": [*DEEPSPEED, f"--master_port={free_port()}", "--num_gpus=2"],
        "torchrun": ["torchrun", "--nproc_per_node=2", f"--master_port={free_port()}"],
        "mpirun": [bin_dir / "mpirun", "--allow-run-as-root", "-n", 2, sys.executable],
        "accelerate": ["accelerate", "launch", "--use_deepspeed", "--zero_stage=3", "--num_processes=2", *port],
        "python": [sys.executable],
    }[name]


def small_store(folder: Path, *, num_texts: int) -> Path:
    """Blocks of the first texts of the sample, as one source without a name."""
    files = sorted((PROJECT_DIR / "data/sample").glob("*.jsonl"))
    texts = [json.loads(line)["text"] for path in files for line in path.read_text().splitlines()]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:num_texts]))
    words = ["--data_files", folder / "texts.jsonl", "--block_length", BLOCK_LENGTH, "--output_dir", folder / "blocks"]
    run_fine(*python("preprocess.py", *words))
    return folder / "blocks"


def training_flags(store: Path | str | None, run_dir: Path, *flags: object) -> list[object]:
    common = ["--output_dir", run_dir, "--global_batch_tokens", BLOCKS_PER_STEP * BLOCK_LENGTH]
    common += [] if store is None else ["--dataset", store]
    common += ["--report", "false"]  # its process takes 2 s at the end of a run of 1 s
    common += ["--per_device_eval_batch_size", 8]  # one by one, the 96 blocks take a third of a run of six steps
    return [*TINY_RUN, *common, "--max_steps", NUM_STEPS, "--per_device_train_batch_size", 2, *flags]


def train(name: str, store: Path | str | None, run_dir: Path, *flags: object, **options: Any) -> Done:
    """Like `try_to_train`, for a run that must succeed."""
    done = try_to_train(name, store, run_dir, *flags, **options)
    assert done.returncode == 0, done.output[-6000:]
    return done


def try_to_train(
    name: str,
    store: Path | str | None,
    run_dir: Path,
    *flags: object,
    script: str | Path = "pretrain.py",
    env: dict[str, str] | None = None,
) -> Done:
    """A run by a launcher's name, in "2 ranks" or "1 rank" of the preloaded process, or as a "fork" of it."""
    words = [PROJECT_DIR / script, *training_flags(store, run_dir, *flags)]
    environment = {"PYTHONPATH": SEARCH_PATH, **(env or {})}
    if name == "fork":
        return run_forked(sys.executable, *words, env=environment)
    if name.endswith(("rank", "ranks")):
        return run_preloaded(int(name.split()[0]), words, environment)
    return run(*launcher(name), *words, env=environment)


# What is read while libraries are loaded: a process that has loaded them cannot take it over.
READ_AT_IMPORT = ("LD_PRELOAD", "OMP_NUM_THREADS", "TORCH_LOGS")
# Tensors of some megabytes are freed and allocated again at each step: without these glibc returns them to the kernel,
# whose clearing of fresh pages takes a fifth of the CPU time of a short run; 17 MB are the logits of eight blocks.
KEPT_BYTES = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}


@cache
def preloaded(variables: frozenset[tuple[str, str]]) -> subprocess.Popen:
    """The process that has everything imported; it ends with this one, whose end closes its input."""
    env = {
        **os.environ,
        **KEPT_BYTES,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": SEARCH_PATH,
        **dict(variables),
    }
    script = PROJECT_DIR / "tests/programs/drivers/preloaded.py"
    return subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=PROJECT_DIR
    )


def preloaded_for(env: dict[str, str]) -> subprocess.Popen:
    """The process whose forks can have these variables."""
    has_already = {("OMP_NUM_THREADS", "1")}
    return preloaded(frozenset((name, env[name]) for name in READ_AT_IMPORT if name in env) - has_already)


def end_preloaded(server: subprocess.Popen) -> None:
    """Kill the process and its ranks; the next job starts another."""
    for process in descendants(server.pid):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    server.kill()
    server.wait()
    preloaded.cache_clear()


HAND_OVER = PROJECT_DIR / "tests/programs/hand_over.py"


def leave_listening(folder: Path, host: str = os.uname().nodename[:8], init: int | None = None) -> dict[str, str]:
    """Have forks of the preloaded process run what launchers and supervisors start as `HAND_OVER PROGRAM --flags`.

    On the host whose first process is `init`, if that is given. Returns what has to be in the environment.
    """
    server = preloaded(frozenset())
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps({"listen": str(folder / host), "init": init}) + "\n")
    server.stdin.flush()
    assert int(server.stdout.readline()) == 0
    return {"PYTHON_LISTENING": str(folder)}


def run_forked(
    *words: object, cwd: Path = PROJECT_DIR, env: dict[str, str] | None = None, stdin: str | None = None
) -> Done:
    """Like `run`, in a fork of the preloaded process: for programs whose start proves nothing more.

    For what libraries read when they are imported, another process imports everything; not for the address of a Hub.
    """
    return run_preloaded(0, words[1:], env or {}, cwd=cwd, stdin=stdin)


def run_forked_fine(*words: object, **options: Any) -> Done:
    """Like `run_forked`, for a program that must succeed."""
    done = run_forked(*words, **options)
    assert done.returncode == 0, done.output[-6000:]
    return done


def run_preloaded(
    num_ranks: int,
    words: Sequence[object],
    env: dict[str, str],
    *,
    cwd: Path = PROJECT_DIR,
    stdin: str | None = None,
) -> Done:
    """A program and its arguments in ranks as torchrun starts them, or in a process without a launcher, of 0 ranks."""
    server = preloaded_for(env)
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder, name)) for name in ("stdin", "stdout", "stderr")}
        Path(paths["stdin"]).write_text(stdin or "")
        job = {"argv": [str(word) for word in words], "env": env, "num_ranks": num_ranks, "port": free_port()}
        try:
            server.stdin.write(json.dumps({**job, "cwd": str(cwd), **paths}) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())  # an empty line, of a server that died, is not a number
        except BaseException as error:  # the timeout of a test is no Exception
            end_preloaded(server)  # its answer would be taken for that of the next job
            written = [Path(paths[name]).read_text() for name in ("stdout", "stderr") if Path(paths[name]).exists()]
            error.add_note("written so far:\n" + "".join(written)[-6000:])
            raise
        texts = {name: Path(paths[name]).read_text() for name in ("stdout", "stderr")}
    return Done(code, texts["stdout"], texts["stderr"])


def records(run_dir: Path, key: str = "loss") -> list[dict]:
    with jsonlines.open(run_dir / "metrics.jsonl") as reader:
        return [record for record in reader if key in record]


def events(run_dir: Path, *kinds: str) -> list[dict]:
    """The events of these kinds, without the time."""
    found = (record for record in records(run_dir, "event") if record["event"] in kinds)
    return [{name: value for name, value in event.items() if name != "logged_at"} for event in found]


def figures(run_dir: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    return [(record["loss"], record["grad_norm"]) for record in records(run_dir)]


GROUPS = ("embeddings", "attention", "mlp", "norms", "head")


def group_norms(run_dir: Path, groups: Sequence[str] = GROUPS) -> list[list[float]]:
    """The gradient norms of each step by group of parameters; no other group may be there."""
    steps = [{name: norm for name, norm in record.items() if "grad_norm/" in name} for record in records(run_dir)]
    assert all(list(step) == [f"grad_norm/{group}" for group in groups] for step in steps)
    return [list(step.values()) for step in steps]
