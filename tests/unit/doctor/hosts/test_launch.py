"""What the launcher needs here: a file of variables that it can read, and variables that reach the hosts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.doctor.hosts import launch
from tests.conftest import PROJECT_DIR, run_fine

SHOW = """
import dataclasses, json
from pretraining.doctor.hosts.launch import check_launch
found = check_launch({"node-a": ["HF_HOME"], "node-b": []})
print(json.dumps([dataclasses.asdict(finding) for finding in found]))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_empty_line_is_found_before_the_launcher_crashes_at_it(home: Path) -> None:
    path = home / launch.ENVIRONMENT_FILE
    path.write_text("HF_HOME=/data/hf\n\nNCCL_IB_HCA=mlx5=0\nexport\n")
    names, findings = launch.read_environment_files()
    assert names == {"HF_HOME", "NCCL_IB_HCA"}
    assert "lines 2, 4 are empty or have no `=`" in findings[0].figure
    assert findings[0].status == "failure"
    subprocess.run(["sh", "-c", findings[0].fix], check=True)
    assert path.read_text() == "HF_HOME=/data/hf\nNCCL_IB_HCA=mlx5=0\n"
    assert launch.read_environment_files() == (names, [])


def test_variables_that_would_be_lost_are_named_without_their_values(home: Path) -> None:
    env = {"HF_TOKEN": "hf_secret", "HF_HOME": "/data/hf", "PYTHONUTF8": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    (home / launch.ENVIRONMENT_FILE).write_text("GLOO_SOCKET_IFNAME=eth0\n")
    done = run_fine(sys.executable, "-c", SHOW, cwd=home, env={**env, "PYTHONPATH": str(PROJECT_DIR)})
    assert "hf_secret" not in done.output
    lost = [found for found in json.loads(done.stdout) if found["name"] == "environment"]
    by_hosts = {tuple(found["figures"]["hosts"]): set(found["figures"]["variables"]) for found in lost}
    assert by_hosts["node-a",] & {*env, "OMP_NUM_THREADS"} == {"HF_TOKEN"}
    assert by_hosts["node-b",] - by_hosts["node-a",] == {"HF_HOME"}
    subprocess.run(["sh", "-c", lost[1]["fix"]], check=True, env={**os.environ, **env})
    lines = (home / launch.ENVIRONMENT_FILE).read_text().splitlines()
    assert {"HF_TOKEN=hf_secret", "HF_HOME=/data/hf"} <= set(lines)
