"""A stand-in for ssh, which starts the programs of other hosts here."""

from pathlib import Path

import pytest

# Of its arguments the name of the host follows `--`, and the command follows that.
SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
case $2 in
  hangs*) exec sleep 600 ;;
  breaks) touch "$0-broke"; echo 'ImportError: libnccl.so.2' >&2; echo bye >&2; exit 1 ;;
  notices) until [ -e "$0-broke" ]; do sleep 0.1; done; sleep 0.5; echo 'RuntimeError: Connection closed' >&2; exit 1 ;;
  chatty*) echo 'welcome to {"a": 1}'; exec sh -c "$3" ;;
  refuses) echo "ssh: connect to host refuses port 22: Connection refused" >&2; exit 255 ;;
  *) exec sh -c "$3" ;;
esac
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first `ssh` in PATH; hosts behave as their names say."""
    path = tmp_path / "bin/ssh"
    path.parent.mkdir()
    path.write_text(SSH)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
