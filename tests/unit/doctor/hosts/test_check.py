"""All hosts at once; a stand-in for ssh starts the real program here, tests/multinode/test_doctor.py the real ssh."""

from pathlib import Path
from typing import Any

import pytest

from pretraining.doctor.finding import Finding, ok
from pretraining.doctor.hosts import bandwidth, check
from pretraining.doctor.hosts.hostfile import Host
from pretraining.doctor.hosts.ssh import Session


def check_names(folder: Path, *names: str, slots: int = 1) -> dict[str, list[Finding]]:
    request = check.HostsRequest(folder / "hosts", folder / "runs", [])
    found: dict[str, list[Finding]] = {}
    for finding in check.check_hosts([Host(name, slots) for name in names], request):
        found.setdefault(finding.name, []).append(finding)
    return found


@pytest.mark.launch
def test_a_host_that_hangs_is_one_line_and_the_others_are_checked(
    ssh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone is given up early; the others have all the time that they may take on a busy machine.

    The network between them is not measured: tests/multinode/test_doctor.py does that.
    """
    ask, limits = Session.ask, set()

    async def ask_briefly(session: Session, question: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        limits.add(seconds)
        return await ask(session, question, seconds=1.0 if session.host.name == "hangs" else seconds)

    async def not_measured(*_: Any, **__: Any) -> Finding:
        return ok("bandwidth", "")

    monkeypatch.setattr(Session, "ask", ask_briefly)
    monkeypatch.setattr(bandwidth, "measure_between", not_measured)
    found = check_names(tmp_path, "node-a", "hangs", "refuses", "chatty")
    assert limits == {check.FACTS_SECONDS, check.VIEW_SECONDS}
    bad = {finding.figures["host"]: finding.figure for finding in found["ssh"] if finding.status == "failure"}
    assert bad["hangs"] == "hangs: no answer within 1 s"
    assert bad["refuses"].startswith("refuses: no ssh server answers")
    (good,) = [finding for finding in found["ssh"] if finding.status == "ok"]
    assert good.figures["hosts"] == ["node-a", "chatty"]
    for name in ("versions", "run folder", "clocks"):
        assert [finding.status for finding in found[name]] == ["ok"], name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


@pytest.mark.launch
def test_hosts_with_fewer_cores_than_their_slots_need_are_not_measured(ssh: None, tmp_path: Path) -> None:
    found = check_names(tmp_path, "node-a", "chatty", slots=100_000)
    assert [finding.status for finding in found["slots"]] == ["failure"] * 2
    (network,) = found["bandwidth"]
    assert network.figure.startswith("not measured: it takes two hosts with the same software and enough GPUs or cores")


def test_no_host_is_a_list_of_failures(ssh: None, tmp_path: Path) -> None:
    found = check_names(tmp_path, "refuses")
    assert [finding.status for finding in found["ssh"]] == ["failure"]
    assert "versions" not in found
