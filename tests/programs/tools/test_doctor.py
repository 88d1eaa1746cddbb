"""tools.doctor as a user starts it: a sick machine, a bare one, and the two ways to say what was found."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Done, assert_nowhere, run
from tests.fakes.doctoring import diagnose, diagnose_some, fake_package, find, findings
from tests.fakes.hub import running_hub
from tests.fakes.hub.server import ALICE_READS

pytestmark = pytest.mark.launch

QUICK = "python,requirements.txt,pynvml,environment,encoding,cores,shared memory,limits"


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Done, int]]:
    """Every check on a machine with many ills at once, and the port that is taken on it."""
    folder = tmp_path_factory.mktemp("sick")
    lock = folder / "extensions/py311_cpu/cpu_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    for name, version in {"jsonlines": "3.9.0", "idna": "0.1", "nvidia-ml-py3": "7.352.0"}.items():
        fake_package(folder / "packages", name, version)
    with running_hub() as hub, socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        env = hub.env(folder / "home", ALICE_READS)
        env |= {
            "TORCH_EXTENSIONS_DIR": f"{folder}/extensions",
            "PYTHONPATH": f"{folder}/packages",
            "MASTER_PORT": f"{port}",
        }
        env |= {"CUDA_VISIBLE_DEVICES": "", "NCCL_P2P_DISABLE": "1", "PYTHONIOENCODING": "latin-1"}
        env |= {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:8", "OMP_NUM_THREADS": "1000", "RANK": "0"}
        few_files = ["bash", "-c", 'ulimit -n 256 && exec "$@"', "bash"]
        done = diagnose("--json", "--run_folder_or_disk", folder / "new/run", launcher=few_files, env=env)
        assert_nowhere(ALICE_READS, done, folder)
        yield done, port


ILLS = {
    "extension locks": ("failure", "cpu_adam/lock"),
    "requirements.txt": ("failure", "jsonlines 3.9.0 (needs >=4.0)"),
    "requirements.lock": ("warning", "idna 0.1 (tested with 3.20)"),
    "pynvml": ("failure", "nvidia-ml-py3 7.352.0"),
    "open files": ("warning", "256"),
    "CUDA_VISIBLE_DEVICES": ("warning", "hides every GPU"),
    "NCCL_P2P_DISABLE": ("warning", "host memory"),
    "PYTORCH_CUDA_ALLOC_CONF": ("failure", "max_split_size_mb is 8"),
    "OMP_NUM_THREADS": ("warning", "1000"),
    "RANK": ("warning", "without a launcher"),
    "encoding": ("warning", "latin-1"),
    "Hub token": ("warning", "of alice, role read: pushes will be rejected"),
}


@pytest.mark.parametrize("name", ILLS)
@pytest.mark.guarantee("The doctor finds injected faults and never shows a token.")
def test_each_ill_is_found(sick: tuple[Done, int], name: str) -> None:
    status, words = ILLS[name]
    assert words in find(sick[0], name, status)["figure"]


def test_a_port_in_use_is_found_with_who_has_it_and_a_free_one(sick: tuple[Done, int]) -> None:
    done, port = sick
    found = find(done, "port", "warning")
    assert f"{port} is taken by " in found["figure"]
    (other,) = re.fullmatch(r"deepspeed --master_port=(\d+) pretrain.py", found["fix"]).groups()
    with socket.create_server(("", int(other))):
        pass


def test_a_failure_is_the_exit_code_and_the_verdict(sick: tuple[Done, int]) -> None:
    done, _ = sick
    told = json.loads(done.stdout)
    statuses = [found["status"] for found in told["findings"]]
    counts = f"{statuses.count('ok')} ok, {statuses.count('warning')} warnings, {statuses.count('failure')} failures"
    assert statuses.count("failure") == 4
    assert told["verdict"].startswith(f"not ready to train: {counts} in ")
    assert (done.returncode, done.stderr) == (1, "")
    assert sum(found["seconds"] for found in told["findings"]) <= told["seconds"]
    assert {found["group"] for found in told["findings"]} == {"software", "host", "disk", "Hub", "GPUs", "speed"}


def test_what_the_machine_can_do_is_measured(sick: tuple[Done, int]) -> None:
    done, _ = sick
    reduced = find(done, "all-reduce", "ok")["figures"]
    assert (reduced["backend"], reduced["size"]) == ("gloo", 2)
    assert reduced["bus_bytes_per_second"] == pytest.approx(reduced["bytes_per_second"])  # 2 (n - 1) / n of two
    for name in ("fp32_flops_per_second", "bf16_flops_per_second"):
        assert find(done, "CPU matmul", "ok")["figures"][name] > 1e8
    assert find(done, "CPU memory", "ok")["figures"]["memory_bytes_per_second"] > 1e8
    (disk,) = [found["figures"] for found in findings(done) if found["name"] == "disk speed"]
    assert min(disk["write_bytes_per_second"], disk["read_bytes_per_second"]) > 0
    assert json.loads(done.stdout)["machine"]["num_cores"] >= 1


def test_table_and_json_find_the_same(tmp_path: Path) -> None:
    env = {"CUDA_LAUNCH_BLOCKING": "1", "CUDA_VISIBLE_DEVICES": "", "PYTORCH_ALLOC_CONF": "max_split_size_mb:3"}
    told = diagnose_some(QUICK, "--json", env=env)
    expected = [(found["status"], found["name"], found["fix"]) for found in findings(told)]
    for columns in ("80", "140"):
        shown = diagnose_some(QUICK, env={**env, "COLUMNS": columns})
        assert shown.returncode == told.returncode == 1
        lines = shown.stdout.splitlines()
        rows = [line for line in lines if re.match(r"  (ok|warning|failure) ", line)]
        fixes = iter([line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")])
        seen = [
            (status, name.strip(), "" if status == "ok" else next(fixes)) for status, name in map(status_and_name, rows)
        ]
        assert seen == expected
        assert all(len(line) <= int(columns) for line in lines if "$ " not in line)
        assert "\033" not in shown.stdout
        assert shown.stderr == ""
        verdict = json.loads(told.stdout)["verdict"]
        assert lines[-1].split(" in ")[0] == verdict.split(" in ")[0]


def status_and_name(row: str) -> tuple[str, str]:
    return row[2:9].strip(), row[11:].split("  ")[0]


def test_it_speaks_where_nothing_is_installed(tmp_path: Path) -> None:
    done = diagnose("--json", "--run-folder-or-disk", tmp_path, interpreter_flags=["-S"])
    assert (done.returncode, done.stderr) == (1, "")
    found = find(done, "requirements.txt", "failure")
    assert {"torch", "deepspeed", "nvidia-ml-py"} <= set(found["figures"]["missing"])
    assert found["fix"].startswith("python3 -m pip install -c requirements.lock setuptools wheel torch && ")
    for name in ("torch", "Hub", "all-reduce"):
        found = find(done, name, "warning")
        assert found["figure"].startswith("could not be checked (ModuleNotFoundError: ")
        assert found["fix"].startswith("python3 -m pip install ")
    (memory,) = [found for found in findings(done) if found["name"] == "memory"]
    assert memory["figures"]["available_bytes"] > 0, "whether it is enough depends on this machine"


def test_a_wrong_flag_is_refused() -> None:
    done = run(sys.executable, "-m", "tools.doctor", "--run_folder")
    assert done.returncode == 2
    assert "Traceback" not in done.output
