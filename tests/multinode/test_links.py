"""A connection between machines breaks when the other one does not answer, and not when its processes are busy."""

import signal
import sys
import time
from pathlib import Path

from pretraining.system.launchers import DEEPSPEED, free_port
from tests.conftest import PROJECT_DIR
from tests.multinode.hosts import ADDRESSES, NODE_A, NODE_B, HostProcess, TwoHosts
from tests.programs.launching import figures, train, training_flags

ANSWER_SECONDS = 1  # instead of 30
BEGIN = """\
import select, socket, sys, time
from pretraining.system.machines.network import listen
from pretraining.training.stopping import link_sockets, machine_links
link_sockets.TCP_OPTIONS |= {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_USER_TIMEOUT: 1000}
def say(*words):
    print(*words, flush=True)
"""
LISTEN = """\
listener = listen()
say("port", listener.getsockname()[1])
link = link_sockets.accept(listener, b"t" * 32, [1], seconds=60)[1]
say("linked")
poll = select.poll()
poll.register(link, select.POLLIN)
poll.poll()
say(machine_links.receive(link, 1, "node-b").message)
"""
CONNECT = "link = link_sockets.connect(sys.argv[1], int(sys.argv[2]), b't' * 32, 1, seconds=60)\ntime.sleep(600)"


def wait_for(process: HostProcess, text: str) -> str:
    process.wait_until(lambda: text in process.output())
    return process.output().split(text)[1]


def test_only_a_machine_that_does_not_answer_is_gone(hosts: TwoHosts) -> None:
    """Not one whose process does nothing, as in a long save."""
    env = {"PYTHONPATH": str(PROJECT_DIR)}
    listening = hosts.run(NODE_A, [sys.executable, "-c", BEGIN + LISTEN], env=env)
    port = wait_for(listening, "port ").strip()
    connected = hosts.run(NODE_B, [sys.executable, "-c", BEGIN + CONNECT, ADDRESSES[NODE_A], port], env=env)
    wait_for(listening, "linked")
    connected.send_signal(signal.SIGSTOP)
    time.sleep(2 * ANSWER_SECONDS)
    assert listening.poll() is None
    connected.send_signal(signal.SIGCONT)
    hosts.cut_link()
    assert "node-b of this run is gone (no answer for 30 s)" in listening.done().output


def test_a_slow_link_changes_no_step(hosts: TwoHosts, sample_store: Path, tmp_path: Path) -> None:
    hosts.slow_link(5)
    flags = ["--eval_strategy", "no", "--max_steps", 3]
    words = [*DEEPSPEED, f"--hostfile={hosts.hostfile()}", f"--master_port={free_port()}", "pretrain.py"]
    done = hosts.run(NODE_A, [*words, *training_flags(sample_store, tmp_path / "slow", *flags)]).done()
    assert done.returncode == 0, done.output[-6000:]
    train("2 ranks", sample_store, tmp_path / "fast", *flags)
    assert figures(tmp_path / "slow") == figures(tmp_path / "fast")
