"""tools.doctor --hostfile on two hosts: all well, and everything that can differ between hosts, found and named."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR
from tests.multinode.hosts import ADDRESSES, NODE_A, NODE_B, TwoHosts

pytestmark = pytest.mark.launch


def diagnose(hosts: TwoHosts, hostfile: Path, *flags: object, env: dict[str, str] | None = None) -> tuple[int, dict]:
    """Exit code and findings by name, as typed on the first host."""
    words = [sys.executable, "-m", "tools.doctor", "--hostfile", hostfile, "--json", *flags]
    done = hosts.run(NODE_A, words, env=env).done()
    assert "Traceback" not in done.output
    found = json.loads(done.stdout)
    assert found["seconds"] < 60
    by_name: dict[str, list[dict]] = {}
    for finding in found["findings"]:
        assert finding["status"] == "ok" or finding["fix"], finding
        by_name.setdefault(finding["name"], []).append(finding)
    return done.returncode, by_name


def only(found: dict[str, list[dict]], name: str) -> tuple[str, str]:
    """Status and figure of the one finding of this name."""
    (finding,) = found[name]
    return finding["status"], finding["figure"]


@pytest.mark.guarantee("The doctor checks all hosts of a hostfile within a minute and names the host of each fault.")
def test_two_sound_hosts(hosts: TwoHosts, tmp_path: Path, sample_store: Path) -> None:
    hosts.name_as_debian()
    run_folder = tmp_path / "runs/news"
    code, found = diagnose(
        hosts,
        hosts.hostfile(),
        "--output_dir",
        run_folder,
        "--dataset",
        f"news={sample_store}:0.7",
        f"b={sample_store}:0.3",
    )
    assert code == 0, found
    names = {"hostfile", "ssh", "versions", "GPUs", "memory", "run folder", "blocks", "clocks", "address", "bandwidth"}
    for name in (*names, "pdsh"):
        assert {finding["status"] for finding in found[name]} == {"ok"}, found[name]
    assert only(found, "address") == ("ok", f"{NODE_A} is reached at {ADDRESSES[NODE_A]}")
    measured = found["bandwidth"][0]["figures"]
    assert (measured["backend"], measured["size"]) == ("gloo", 2)
    assert measured["bus_bytes_per_second"] == pytest.approx(measured["bytes_per_second"])
    assert not run_folder.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".doctor")]


def make_different(hosts: TwoHosts, run_folder: Path, blocks: Path, store: Path) -> None:
    """Other folders, another package and other code on the second host; a store without its shards on the first."""
    for folder in (run_folder, blocks):
        folder.mkdir()
        hosts.private(NODE_B, folder)
    (blocks / "manifest.json").write_bytes((store / "manifest.json").read_bytes())
    (metadata,) = Path(pytest.__file__).parents[1].glob("transformers-*.dist-info")
    other = hosts.private(NODE_B, metadata)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.0.0\n")
    changed = hosts.private(NODE_B, PROJECT_DIR / "pretraining/evaluation")
    (changed / "__init__.py").write_text("CHANGED = True\n")


def test_what_differs_is_named_with_its_host(hosts: TwoHosts, tmp_path: Path, sample_store: Path) -> None:
    run_folder, blocks = tmp_path / "runs", tmp_path / "blocks"
    make_different(hosts, run_folder, blocks, sample_store)
    hostfile = hosts.hostfile()
    hostfile.write_text(
        f"{hostfile.read_text()}{ADDRESSES[NODE_B][:-1]}3 slots=1\nnode-x slots=1\n{NODE_A} slots=2\nlast\n"
    )
    flags = ["--output_dir", run_folder, "--dataset", blocks]
    code, found = diagnose(hosts, hostfile, *flags, env={"HF_HOME": "/data/hf", "WANDB_API_KEY": "secret"})
    assert code == 1

    assert [finding["figure"] for finding in found["hostfile"]] == [
        f"{hostfile}:5: {NODE_A} is in the file twice, which DeepSpeed rejects",
        f"{hostfile}:6: 'last' is not `NAME slots=GPUS`",
    ]
    assert only(found, "name resolution")[1].startswith("node-x: the name is not known here (ssh: Could not resolve")
    lost, answered = found["ssh"]
    assert (lost["status"], lost["figure"][:10]) == ("failure", "10.77.0.3:")
    assert answered["figure"] == "2 of 4 hosts answered"
    assert only(found, "versions")[1].startswith(f"{NODE_B}: transformers 4.0.0 ({NODE_A}: ")
    assert only(found, "project")[1].startswith(f"{NODE_B}: other code, ")
    expected = f"{NODE_B}: {run_folder} is not the folder of {NODE_A}; checkpoints need one that all hosts share"
    assert only(found, "run folder") == ("failure", expected)
    on_a, on_b = [finding["figure"] for finding in found["blocks"]]
    assert on_a.startswith(f"{NODE_A}: {blocks}: ")
    assert on_a.split(": ")[2].endswith(
        "files are missing or have another size, e.g. documents/documents-00000-of-00001.parquet"
    )
    assert on_b == f"{NODE_B}: {blocks}: manifest.json is missing (No such file or directory)"
    assert found["environment"][0]["figures"]["hosts"] == [NODE_A, NODE_B]
    assert {"HF_HOME", "WANDB_API_KEY"} <= set(found["environment"][0]["figures"]["variables"])
    assert "secret" not in json.dumps(found)
    assert only(found, "bandwidth")[0] == "warning"


def test_a_host_without_the_interpreter_or_the_folder(hosts: TwoHosts, tmp_path: Path) -> None:
    python = hosts.private(NODE_B, Path(sys.executable).parent)
    code, found = diagnose(hosts, hosts.hostfile(), "--output_dir", tmp_path)
    assert code == 1
    figure = f"{NODE_B}: {sys.executable} is missing, which the launcher starts"
    assert only(found, "interpreter") == ("failure", figure)
    assert only(found, "ssh") == ("ok", "1 of 2 hosts answered")
    assert list(python.iterdir()) == []


@pytest.mark.long  # test_what_differs_is_named_with_its_host, of an address without a host
def test_a_cut_link_is_one_line_within_its_bound(hosts: TwoHosts, tmp_path: Path) -> None:
    hosts.cut_link()
    code, found = diagnose(hosts, hosts.hostfile(), "--output_dir", tmp_path)
    assert code == 1
    lost, answered = found["ssh"]
    assert lost["figure"].startswith(f"{NODE_B}: ")
    assert lost["status"] == "failure"
    assert answered["figure"] == "1 of 2 hosts answered"
