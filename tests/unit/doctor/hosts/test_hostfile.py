"""Hostfiles as DeepSpeed reads them, and each mistake in one with its line and a command that corrects it."""

import subprocess
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from pretraining.doctor.hosts.hostfile import Host, read_hostfile
from pretraining.errors import UserError


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# two\nnode-a slots=8\n\n  node-b.cluster \t slots=4  \n10.0.0.3 slots=2 # spare\n")
    hosts, findings = read_hostfile(path)
    assert {host.name: host.slots for host in hosts} == dict(fetch_hostfile(path))
    assert [finding.status for finding in findings] == ["ok"]
    assert "3 hosts, 14 processes" in findings[0].figure


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("node-b", "failure", "'node-b' is not `NAME slots=GPUS`"),
        ("node-b:4", "failure", "'node-b:4' is not"),
        ("node-b slots=", "failure", "is not `NAME slots=GPUS`"),
        ("node-b slots=0", "failure", "node-b has 0 slots"),
        ("node-a slots=8", "failure", "node-a is in the file twice"),
        ("-oProxyCommand=x slots=1", "failure", "is not the name of a host"),
        ("node-b slots=4 max_slots=8", "warning", "node-b: DeepSpeed ignores 'max_slots=8'"),
    ],
)
def test_a_wrong_line_is_named_and_its_remedy_leaves_none(tmp_path: Path, line: str, status: str, words: str) -> None:
    path = hostfile(tmp_path, f"node-a slots=8\n{line}\nnode-c slots=8\n")
    hosts, (finding,) = read_hostfile(path)
    assert (finding.name, finding.status) == ("hostfile", status)
    assert f"{path}:2: " in finding.figure
    assert words in finding.figure
    assert hosts[0] == Host("node-a", 8)
    assert hosts[-1] == Host("node-c", 8)
    subprocess.run(["sh", "-c", finding.fix.replace("NAME", "node-b").replace("GPUS", "4")], check=True)
    _, findings = read_hostfile(path)
    assert [finding.status for finding in findings] == ["ok"]


@pytest.mark.parametrize("text", ["", "# node-a slots=8\n\n"])
def test_a_file_without_hosts_is_a_mistake(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"--hostfile .*: names no host; write"):
        read_hostfile(hostfile(tmp_path, text))


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--hostfile .*nowhere: cannot be read \(No such file"):
        read_hostfile(tmp_path / "nowhere")
