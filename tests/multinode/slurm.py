"""Slurm itself on the two hosts: slurmctld on the first, slurmd and munged on both, 8 GPUs each by its books."""

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import HANG_SECONDS, PROJECT_DIR, Done
from tests.multinode.hosts import ADDRESSES, NAMES, NODE_A, SEARCH_PATH, TwoHosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
# A requeued job waits until credentials of its first start have expired, by default for two minutes.
CONFIG = """\
ClusterName=test
SlurmctldHost={first}
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName={name} NodeAddr={address} CPUs=16 RealMemory=1000 Gres=gpu:8\n"
MUNGED = "mkdir -p /run/munge /run/slurmd; exec munged --force --foreground --num-threads=1 --key-file={folder}/key"
MUNGED += " --log-file=/run/munge/log --pid-file=/run/munge/pid --seed-file=/run/munge/seed"


class Cluster:
    """Slurm on both hosts; without its packages the test is skipped."""

    def __init__(self, hosts: TwoHosts, folder: Path) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
        if missing:
            pytest.skip(f"Slurm: {', '.join(missing)} not installed")
        self._hosts, self.folder = hosts, folder
        (folder / "state").mkdir(parents=True)
        (folder / "key").write_bytes(os.urandom(64))
        (folder / "key").chmod(0o400)
        nodes = [NODE.format(name=name, address=ADDRESSES[name]) for name in NAMES]
        (folder / "slurm.conf").write_text(CONFIG.format(first=NODE_A, folder=folder) + "".join(nodes))
        for number in range(8):  # Slurm asks for files, of whatever kind
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        self.env = {"SLURM_CONF": f"{folder}/slurm.conf"}
        self._daemons = [hosts.run(name, ["sh", "-c", MUNGED.format(folder=folder)]) for name in NAMES]
        self._wait_for(lambda: self.call("munge", "-n").returncode == 0)
        self._daemons.append(hosts.run(NODE_A, ["slurmctld", "-D", "-c"], env=self.env))
        self._daemons += [hosts.run(name, ["slurmd", "-D", "-N", name], env=self.env) for name in NAMES]
        self._wait_for(lambda: "idle 2" in self.call("sinfo", "-h", "-o", "%T %D").stdout)

    def _wait_for(self, is_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HANG_SECONDS / 10
        while not is_up():
            assert time.monotonic() < deadline, "".join(daemon.output() for daemon in self._daemons)[-3000:]
            time.sleep(0.2)

    def call(self, *words: object, cwd: Path = PROJECT_DIR, env: dict[str, str] | None = None) -> Done:
        """A command of Slurm, typed on the first host."""
        return self._hosts.run(NODE_A, words, cwd=cwd, env={**self.env, **(env or {})}).done()

    def submit(self, options: Sequence[object], script: Path, *words: object, cwd: Path = PROJECT_DIR) -> str:
        """The number of the job."""
        own = ["--parsable", f"--output={self.folder}/%j.log"]
        done = self.call("sbatch", *own, *options, script, *words, cwd=cwd)
        assert done.returncode == 0, done.output
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", number).stdout))

    def log(self, number: str) -> str:
        """What a job has written, in all of its attempts."""
        path = self.folder / f"{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def end_of(self, number: str) -> tuple[str, str, int]:
        """State, exit code and restarts of a job that has ended for good."""
        deadline = time.monotonic() + HANG_SECONDS
        while (job := self.job(number))["JobState"] not in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"):
            assert time.monotonic() < deadline, self.log(number)[-3000:]
            time.sleep(0.3)
        return job["JobState"], job["ExitCode"].partition(":")[0], int(job["Restarts"])
