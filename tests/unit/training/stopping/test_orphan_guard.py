"""Which command an orphan guard watches; test_orphans.py and test_ends.py kill real ones."""

import subprocess
from pathlib import Path

from pretraining.system.processes import ProcessHandle, stat_words
from pretraining.training.stopping.orphan_guard import _deepspeed_runner
from pretraining.training.stopping.remote_launch import is_below_sshd

STARTS_THE_REST = '"$@"; :'  # with `:` last, a shell does not become what it starts


def test_a_deepspeed_command_typed_through_ssh_is_watched(tmp_path: Path) -> None:
    words: list[str] = []
    for name in ("sshd", "deepspeed"):
        (tmp_path / name).symlink_to("/bin/sh")
        words += [str(tmp_path / name), "-c", STARTS_THE_REST, name]
    words += ["/bin/sh", "-c", "echo $$; read line; :", "deepspeed.launcher.launch"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sshd:
        assert sshd.stdout is not None
        launcher = int(sshd.stdout.readline())
        deepspeed = int(stat_words(launcher)[1])
        assert int(stat_words(deepspeed)[1]) == sshd.pid
        assert is_below_sshd(launcher)
        assert _deepspeed_runner(launcher) == ProcessHandle.of(deepspeed)
        sshd.communicate("")
