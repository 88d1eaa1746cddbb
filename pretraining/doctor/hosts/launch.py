"""What `deepspeed --hostfile` needs on the machine where it is typed: pdsh, and variables that reach the hosts."""

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.system.gpus import driver_gpu_names

ENVIRONMENT_FILE = ".deepspeed_env"  # in the home folder and in the working folder; DS_ENV_FILE renames it
# Beginnings of names that change a run.
RELEVANT = ("HF_", "WANDB_", "NCCL_", "OMP_", "MKL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "TRITON_", "TMPDIR")
PASSED_ON = ("MLFLOW", "PYTHON", "MV2", "UCX")  # by DeepSpeed 0.19.8, and NCCL's where there are GPUs
NUM_SHOWN = 4


def check_launch(variables: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Findings of this machine; `variables` has the names of the variables that each host sets for commands of ssh."""
    found = shutil.which("pdsh")
    if found is None:
        fix = "sudo apt-get install pdsh  # or start torchrun, or `deepspeed --no_ssh`, on each host"
        yield failure("pdsh", "not found in PATH: `deepspeed --hostfile` starts nothing without it", fix)
    else:
        yield ok("pdsh", found)
    passed, problems = read_environment_files()
    yield from problems
    yield from _lost_variables(variables, passed)


def read_environment_files() -> tuple[set[str], list[Finding]]:
    """Names in both environment files, and the lines at which the launcher would crash."""
    names, findings = set(), []
    for folder in (Path.home(), Path()):
        path = folder / os.environ.get("DS_ENV_FILE", ENVIRONMENT_FILE)
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        wrong = [str(number) for number, line in enumerate(lines, start=1) if "=" not in line]
        names |= {line.partition("=")[0].strip() for line in lines if "=" in line}
        if wrong:
            kind = "is empty or has" if len(wrong) == 1 else "are empty or have"
            figure = f"{path}: line{'s' * (len(wrong) != 1)} {', '.join(wrong)} {kind} no `=`: the launcher crashes"
            findings.append(failure(ENVIRONMENT_FILE, figure, f"sed -i '/=/!d' {shlex.quote(str(path))}"))
    return names, findings


def own_variables() -> list[str]:
    """The variables with which this program was started; it has set others itself."""
    content = Path("/proc/self/environ").read_bytes()
    return [os.fsdecode(entry.partition(b"=")[0]) for entry in content.split(b"\0") if entry]


def _lost_variables(variables: Mapping[str, Sequence[str]], passed: set[str]) -> Iterator[Finding]:
    """Variables of this machine that would not reach a host. Only names are shown: a value may be a token."""
    prefixes = (*PASSED_ON, "NCCL") if driver_gpu_names() else PASSED_ON
    own = [name for name in sorted(own_variables()) if name.startswith(RELEVANT) and not name.startswith(prefixes)]
    lost: dict[tuple[str, ...], list[str]] = {}
    for host, names in variables.items():
        if missing := tuple(name for name in own if name not in passed and name not in names):
            lost.setdefault(missing, []).append(host)
    for missing, hosts in lost.items():
        shown = ", ".join(hosts[:NUM_SHOWN]) + (f" and {len(hosts) - NUM_SHOWN} more" if len(hosts) > NUM_SHOWN else "")
        fix = f"(umask 077; env | grep -E '^({'|'.join(missing)})=' >> {ENVIRONMENT_FILE})"
        figure = f"{shown}: {', '.join(missing)} of this machine would not be set"
        yield warning("environment", figure, fix, variables=missing, hosts=hosts)
    if not lost:
        yield ok("environment", f"{len(own)} variables that matter are set here, and all reach every host")
