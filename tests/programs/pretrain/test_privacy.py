"""A run tells nobody its secrets, pushes no path of its machine, and accepts connections from no other machine."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from pretraining.system.launchers import DEEPSPEED
from tests.conftest import PROJECT_DIR, Done, assert_nowhere, run_fine
from tests.programs.launching import (
    SEARCH_PATH,
    free_port,
    launcher,
    run_forked_fine,
    run_preloaded,
    training_flags,
)

pytestmark = pytest.mark.launch
SCRIPT = PROJECT_DIR / "tests/programs/drivers/listening_run.py"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
SECRET = "S3cr3t-hunter2"
OTHERS = "another S3cr3t-hunter2"


def of_launcher(name: str) -> list[object]:
    """The words before the script, with secrets of every kind among them."""
    if name == "deepspeed":
        words = shlex.join(map(str, [*DEEPSPEED, f"--master_port={free_port()}", "--num_gpus=2"]))
        return ["bash", "-c", f'echo "wandb login {SECRET}" > /dev/null && {words} "$@"', f"wandb_api_key={SECRET}"]
    words = launcher(name)
    if name == "mpirun":
        exported = ["-x", f"MLFLOW_TRACKING_URI=https://me:{SECRET}@host", "-x", f"db_passwd={SECRET}"]
        return [*words[:2], *exported, *words[2:]]
    return words


def start(name: str, words: list[object], env: dict[str, str]) -> Done:
    if name in ("python", "torchrun"):
        return run_preloaded(2 if name == "torchrun" else 0, words, env)
    return run_fine(*of_launcher(name), *words, env=env)


# Two processes, as torchrun starts them. What other words of a launcher's command hide is held by
# tests/unit/runs/test_command.py, that mpirun gives the same run by test_every_launcher_gives_the_same_run.
@pytest.mark.parametrize(
    "name",
    [
        "torchrun",
        pytest.param("python", marks=pytest.mark.long),
        pytest.param("deepspeed", marks=pytest.mark.long),
        pytest.param("mpirun", marks=pytest.mark.long),
    ],
)
@pytest.mark.guarantee("No secret and no absolute path is published.")
def test_a_run_keeps_to_itself(name: str, sample_store: Path, tmp_path: Path) -> None:
    """Every file of the run folder is searched for the secret, and every socket is on the loopback interface."""
    run_dir, listening = tmp_path / "a run", tmp_path / "listening"
    listening.mkdir()
    config = json.loads((PROJECT_DIR / "ds_config.json").read_text())
    config["comet"] = {"enabled": False, "api_key": SECRET, "workspace": f"https://me:{SECRET}@host"}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    flags = ["--deepspeed", tmp_path / "ds.json", "--hub_token", OTHERS, "--max_steps", 2, "--save_steps", 1]
    flags += ["--report", "false", "--eval_strategy", "no"]
    env = {
        "PYTHONPATH": SEARCH_PATH,
        "LISTENING": str(listening),
        "HTTPS_PROXY": f"http://me:{SECRET}@proxy:3128",
        "wandb_api_key": SECRET,
        "SECRET_TEXT": f"http://me:{SECRET}@proxy and {SECRET}",
    }
    done = start(name, [SCRIPT, *training_flags(sample_store, run_dir, *flags)], env)
    assert done.returncode == 0, done.output[-6000:]
    if name in ("python", "torchrun"):  # the page that --report writes
        run_forked_fine(sys.executable, "-m", "tools.report", run_dir)
        assert (run_dir / "report.html").exists()
    record = json.loads((run_dir / "run.json").read_text())
    known = {"deepspeed": "deepspeed --num_gpus=2", "mpirun": "mpirun -n 2", "torchrun": "WORLD_SIZE=2 python3"}
    assert record["command"].startswith(f"{known.get(name, 'python3')} listening_run.py --model quickstart")
    assert record["ds_config"]["comet"]["api_key"] == "***"
    assert "cannot reach http://***@proxy and ***" in done.output
    assert '"cannot reach http://***@proxy and ***"' in (run_dir / "metrics.jsonl").read_text()
    if name == "deepspeed":  # whose launcher logs the command that it was given
        done = type(done)(done.returncode, "", "")
    assert_nowhere(SECRET, done, run_dir)
    for path in [run_dir / "README.md", *run_dir.glob("report.html"), *(run_dir / "model").iterdir()]:
        assert str(tmp_path).encode() not in path.read_bytes(), path

    num_processes = 1 if name == "python" else 2
    addresses = [json.loads((listening / f"{rank}.json").read_text()) for rank in range(num_processes)]
    assert all(addresses), "gloo listens in every process"
    assert {address for found in addresses for address in found} <= LOOPBACK


def test_the_doctors_processes_meet_in_a_file(tmp_path: Path) -> None:
    script = tmp_path / "measure.py"
    code = "import json, os, sys; from torch import distributed; from pretraining.doctor import all_reduce\n"
    code += "from tests.programs.drivers.listening_run import *\n"
    code += "end = distributed.destroy_process_group\n"
    code += "distributed.destroy_process_group = lambda: (sys.stderr.write(json.dumps(list(listening()))), end())\n"
    code += "print(json.dumps(all_reduce.measure()))"
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    store = {"PRETRAINING_DOCTOR_STORE": str(tmp_path / "store"), "PYTHONPATH": os.pathsep.join([SEARCH_PATH])}
    script.write_text(code)
    done = run_forked_fine(sys.executable, script, env={**ranks, **store})
    assert set(json.loads(done.stderr.splitlines()[-1])) <= LOOPBACK
