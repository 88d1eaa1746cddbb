"""The hosts of these tests are two machines: names, processes, files and network; and nothing of them is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.multinode.hosts import ADDRESSES, NAMES, NODE_A, NODE_B, TwoHosts

PING = ("bash", "-c", f"timeout 1 bash -c '</dev/tcp/{ADDRESSES[NODE_B]}/22'")


def said(hosts: TwoHosts, name: str, *words: object) -> str:
    done = hosts.run(name, words).done()
    assert done.returncode == 0, done.output
    return done.output.strip()


def test_hosts_are_two_machines(hosts: TwoHosts, tmp_path: Path) -> None:
    assert [said(hosts, name, "hostname") for name in NAMES] == list(NAMES)
    assert [said(hosts, name, "hostname", "-I") for name in NAMES] == [ADDRESSES[name] for name in NAMES]
    assert said(hosts, NODE_A, "ssh", NODE_B, "hostname") == NODE_B
    pdsh = hosts.run(NODE_A, ["pdsh", "-S", "-w", ",".join(NAMES), "echo %n %h; exit 3"], env={"PDSH_RCMD_TYPE": "ssh"})
    assert pdsh.done().returncode == 3
    assert {f"{name}: {number} {name}" for number, name in enumerate(NAMES)} <= set(pdsh.output().splitlines())
    said(hosts, NODE_A, "sh", "-c", f"echo shared > {tmp_path}/file; echo own > /tmp/file")
    assert said(hosts, NODE_B, "cat", tmp_path / "file") == "shared"
    assert hosts.run(NODE_B, ["test", "-e", "/tmp/file"]).done().returncode == 1


def test_a_private_folder_is_not_shared(hosts: TwoHosts, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    own = hosts.private(NODE_B, folder)
    for name in NAMES:
        said(hosts, name, "sh", "-c", f"hostname > {folder}/file")
    assert (folder / "file").read_text() == f"{NODE_A}\n"
    assert (own / "file").read_text() == f"{NODE_B}\n"


def test_a_cut_link_drops_without_an_error(hosts: TwoHosts) -> None:
    assert hosts.run(NODE_A, PING).done().returncode == 0
    hosts.cut_link()
    assert hosts.run(NODE_A, PING).done().returncode == 124  # timeout's own: no error within 1 s
    hosts.restore_link()
    assert hosts.run(NODE_A, PING).done().returncode == 0


def test_signals_reach_the_command_and_a_killed_host_has_no_processes(hosts: TwoHosts) -> None:
    trap = hosts.run(NODE_A, ["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"])
    while "ready" not in trap.output():
        time.sleep(0.02)
    trap.terminate()
    assert trap.done().returncode == 7
    remote = hosts.run(NODE_A, ["ssh", NODE_B, "sleep 600"])
    while "sleep 600" not in hosts.commands(NODE_B):
        time.sleep(0.02)
    hosts.kill(NODE_B)
    assert hosts.processes(NODE_B) == []
    assert remote.done().returncode == 255
    hosts.start(NODE_B)
    assert said(hosts, NODE_A, "ssh", NODE_B, "hostname") == NODE_B


@pytest.mark.usefixtures("hosts")
def test_nothing_is_left_when_the_tests_are_killed(tmp_path: Path) -> None:
    """Neither processes nor mounts nor networks: they have no name outside, and end with their parent."""
    script = "import sys, time, pathlib; from tests.multinode.hosts import *\n"
    script += "with TwoHosts(pathlib.Path(sys.argv[1])) as hosts:\n"
    script += "    hosts.run(NODE_A, ['sleep', '987']); print('ready', flush=True); time.sleep(600)"
    words = [sys.executable, "-c", script, str(tmp_path / "killed")]
    killed = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."})
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"ready\n"
    killed.kill()
    killed.communicate()
    while subprocess.run(["pgrep", "-f", f"sleep 987|{tmp_path}/killed"], capture_output=True).stdout:
        time.sleep(0.02)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
