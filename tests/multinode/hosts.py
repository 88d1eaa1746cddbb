"""Two machines on this one: name spaces with a hostname, processes, mounts and network each, joined by a cable.

Each host runs sshd, so `ssh node-b`, pdsh and `deepspeed --hostfile` work on it as on a cluster. The hosts see the same
files, as on a shared file system, but for /tmp, /run, /dev/shm and the folders that `private` takes out. Everything
below ends with the test process, even when that is killed: nothing has a name outside of its name spaces.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import pytest

from pretraining.system.processes import ProcessHandle, command_words, descendants
from tests.conftest import HANG_SECONDS, PROJECT_DIR, Done, wait_until

NODE_A, NODE_B = "node-a", "node-b"
NAMES = (NODE_A, NODE_B)
# The same for all pairs: each has its own network, which nothing else is connected to.
ADDRESSES = {NODE_A: "10.77.0.1", NODE_B: "10.77.0.2"}
NOWHERE = "02:00:00:00:00:99"  # a hardware address that no network card has
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "pdsh")
SEARCH_PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")

SSHD_CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PidFile none
LogLevel ERROR
MaxStartups 100
"""
SSH_CONFIG = """\
Host *
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
# Arguments: hostname, folder with the files, what of /tmp stays visible. A host has its own /tmp.
BOOT = """\
set -e
name=$1 folder=$2; shift 2
hostname "$name"
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/sshd /run/kept
mount -t tmpfs tmpfs /dev/shm
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/ssh_config" /etc/ssh/ssh_config
for kept; do mkdir -p "/run/kept$kept"; mount --bind "$kept" "/run/kept$kept"; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
for kept; do mkdir -p "$kept"; mount --move "/run/kept$kept" "$kept"; done
exec "$(command -v sshd)" -D -e -f "$folder/sshd_config"
"""


class HostProcess(subprocess.Popen[bytes]):
    """A command typed on a host. Signals reach it, and not nsenter, which waits for it outside."""

    log: Path

    def send_signal(self, number: int) -> None:
        """Send a signal to the command; `kill` and `terminate` do so too."""
        for process in descendants(self.pid)[:1]:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def output(self) -> str:
        """What it wrote until now, to stdout and stderr."""
        return self.log.read_text(errors="replace")

    def wait_until(self, is_so: Callable[[], object]) -> None:
        """Wait for what the command does, as long as it runs."""
        wait_until(lambda: is_so() or self.poll() is not None, self.output)
        assert is_so(), self.output()[-6000:]

    def done(self, timeout: float = HANG_SECONDS) -> Done:
        """Wait for its end; the exit code is negative after a signal."""
        return Done(self.wait(timeout), self.output(), "")


class TwoHosts:
    """Two hosts, named node-a and node-b, from `with` to its end; without them the test is skipped with the reason."""

    def __init__(self, folder: Path) -> None:
        """Prepare hosts whose files stand in `folder`, which both see."""
        self.folder = folder
        self._stack = ExitStack()
        self._networks: dict[str, int] = {}  # the process that keeps the network of a host, also while it is down
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self._num_started = 0

    def __enter__(self) -> "TwoHosts":
        """Start both hosts."""
        if reason := _missing():
            pytest.skip(reason)
        with ExitStack() as stack:  # ends what was started when the rest fails
            self._stack = stack
            self._write_files()
            self._make_networks()
            for name in NAMES:
                self.start(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything on both hosts."""
        self._stack.close()

    def start(self, name: str) -> None:
        """Start a host, again after `kill`: with fresh mounts and no processes, in the same place of the network."""
        words = [*self._within(name), *END_WITH_PARENT, "unshare", "--pid", "--fork", "--kill-child", "--mount"]
        words += ["--uts", "--ipc", "bash", "-c", BOOT, "host", name, str(self.folder), *_kept(self.folder)]
        with (self.folder / f"{name}.log").open("ab") as log:
            host = subprocess.Popen(words, env={"PATH": SEARCH_PATH}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._hosts[name] = host
        self._stack.callback(_end, host)
        answers = [*self._within(name), "bash", "-c", f"</dev/tcp/{ADDRESSES[name]}/22"]
        while subprocess.run(answers, stderr=subprocess.DEVNULL).returncode:
            if host.poll() is not None:
                pytest.skip(f"cannot start a host here: {' '.join((self.folder / f'{name}.log').read_text().split())}")
            time.sleep(0.02)

    def run(
        self, name: str, words: Sequence[object], *, env: Mapping[str, str] | None = None, cwd: Path = PROJECT_DIR
    ) -> HostProcess:
        """Start a command on a host, as if typed there; its output goes to a file."""
        self._num_started += 1
        log_path = self.folder / f"{name}-{self._num_started}.log"
        inside = ["nsenter", "-t", str(self.init(name)), "--net", "--pid", "--mount", "--uts", "--ipc"]
        inside += ["env", f"--chdir={cwd}", *map(str, words)]
        inherited = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
        environment = {**inherited, "PATH": SEARCH_PATH, "DS_ACCELERATOR": "cpu", **(env or {})}
        with log_path.open("wb") as log:
            process = HostProcess(
                inside, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        process.log = log_path
        self._stack.callback(_end, process)
        return process

    def kill(self, name: str) -> None:
        """Kill all processes of a host; its kernel still closes their connections, unless the link was cut before."""
        _end(self._hosts[name])

    def cut_link(self) -> None:
        """Drop each packet between the hosts, without an error on either side, as a dead switch between them does."""
        for name, other in (NAMES, NAMES[::-1]):
            self._ip(name, "neigh", "replace", ADDRESSES[other], "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent")

    def restore_link(self) -> None:
        """Undo `cut_link`."""
        for name, other in (NAMES, NAMES[::-1]):
            self._ip(name, "neigh", "del", ADDRESSES[other], "dev", "eth0")

    def slow_link(self, milliseconds: float) -> None:
        """Delay each packet, in both directions; the test is skipped where the kernel cannot."""
        for name in NAMES:
            words = [*self._within(name), "tc", "qdisc", "add", "dev", "eth0", "root", "netem"]
            done = subprocess.run([*words, "delay", f"{milliseconds}ms"], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"the kernel cannot delay packets: {done.stderr.strip()}")

    def private(self, name: str, folder: Path) -> Path:
        """Hide a shared folder of a host behind an empty one, which stands at the returned path for the test."""
        self._num_started += 1
        own = self.folder / f"{name}-private-{self._num_started}"
        own.mkdir()
        folder.mkdir(parents=True, exist_ok=True)
        mount = ["nsenter", "-t", str(self.init(name)), "--mount", "mount", "--bind", own, folder]
        subprocess.run(mount, check=True)
        return own

    def name_as_debian(self) -> None:
        """Have each host find itself at 127.0.1.1, which no other one reaches, as Debian installs a machine."""
        for name, other in (NAMES, NAMES[::-1]):
            path = self.folder / f"hosts-of-{name}"
            path.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{ADDRESSES[other]} {other}\n")
            assert self.run(name, ["mount", "--bind", path, "/etc/hosts"]).done().returncode == 0

    def processes(self, name: str) -> list[ProcessHandle]:
        """What runs on a host, beside sshd and its sessions; empty when it is down."""
        if self._hosts[name].poll() is not None:
            return []
        init, found = self.init(name), []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # of one that has just ended
                if (path / "ns/pid").readlink() == Path(f"/proc/{init}/ns/pid").readlink():
                    found.append(ProcessHandle.of(int(path.name)))
        return [each for each in found if each.is_alive() and not _is_session(each.pid)]

    def commands(self, name: str) -> list[str]:
        """The command lines of `processes`, for messages of tests."""
        return [" ".join(command_words(process.pid)).strip() for process in self.processes(name)]

    def hostfile(self, slots: int = 1) -> Path:
        """A hostfile of both, for `deepspeed --hostfile` and mpirun."""
        path = self.folder / "hostfile"
        path.write_text("".join(f"{name} slots={slots}\n" for name in NAMES))
        return path

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{ADDRESSES[name]} {name}" for name in NAMES)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        (self.folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(SSH_CONFIG.format(folder=self.folder))
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", self.folder / name], check=True)

    def _make_networks(self) -> None:
        """A network per host, and a cable between the two."""
        for name in NAMES:
            words = [*END_WITH_PARENT, "unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"]
            keeper = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self._stack.callback(_end, keeper)
            assert keeper.stdout is not None
            if (said := keeper.stdout.readline().decode().strip()) != "up":
                pytest.skip(f"cannot make a network here: {said}")
            self._networks[name] = keeper.pid
        cable = ["ip", "link", "add", "eth0", "netns", str(self._networks[NODE_A]), "type", "veth"]
        cable += ["peer", "name", "eth0", "netns", str(self._networks[NODE_B])]
        done = subprocess.run(cable, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot join two networks here: {done.stderr.strip()}")
        for name in NAMES:
            self._ip(name, "addr", "add", f"{ADDRESSES[name]}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._ip(name, "link", "set", device, "up")

    def _within(self, name: str) -> list[str]:
        return ["nsenter", "-t", str(self._networks[name]), "--net"]

    def _ip(self, name: str, *words: str) -> None:
        subprocess.run([*self._within(name), "ip", *words], check=True)

    def init(self, name: str) -> int:
        """The first process of a host, which is its sshd."""
        return descendants(self._hosts[name].pid)[0].pid


def _is_session(pid: int) -> bool:
    """Whether a process is sshd's; one that is just ending has no command line."""
    return " ".join(command_words(pid)).startswith("sshd: ")


def _missing() -> str | None:
    """Why there can be no hosts here; None if nothing is known to be in the way."""
    if os.geteuid() != 0:
        return "two hosts: only root can make them"
    missing = [name for name in TOOLS if shutil.which(name, path=SEARCH_PATH) is None]
    return f"two hosts: {', '.join(missing)} not installed (see docs/contributing)" if missing else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    subprocess.Popen.send_signal(process, signal.SIGKILL)  # nsenter as well, of a command on a host
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _kept(folder: Path) -> list[str]:
    """What of /tmp both hosts see: where the test's files, the checkout and the environment stand, if they do there."""
    paths = [path.resolve() for path in (folder, PROJECT_DIR, Path(sys.prefix), Path(sys.base_prefix))]
    inside = [path.relative_to("/tmp").parts[:1] for path in paths if path.is_relative_to("/tmp")]
    return sorted({f"/tmp/{name}" for (name,) in inside})
