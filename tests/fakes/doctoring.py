"""Start the doctor as a user does, with all checks or with some, and read what it found."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import Done, run

# The doctor as a user starts it, but for its limits: on a busy machine a check may take longer than a user would wait.
DOCTOR = """
import dataclasses, os, runpy, sys
from pretraining.doctor import hub, runner
from pretraining.doctor.finding import Check
from pretraining.doctor import all_reduce

PATIENCE_SECONDS = all_reduce.LIMIT_SECONDS = 180.0
runner.run_checks.__kwdefaults__["total_seconds"] = PATIENCE_SECONDS
runner.CHECKS[:] = [dataclasses.replace(check, limit_seconds=PATIENCE_SECONDS) for check in runner.CHECKS]
{changes}
sys.argv[:] = ["doctor", *sys.argv[{first_flag}:]]
runpy.run_module("tools.doctor", run_name="__main__")
"""
# The checks named, and the functions that the test adds to them, of which one hangs.
SOME_CHECKS = """
wanted = sys.argv[1].split(",")
runner.CHECKS[:] = [check for check in runner.CHECKS if check.name in wanted]
if "SECONDS_OF_THE_HUB" in os.environ:
    hub.TIMEOUT_SECONDS = float(os.environ["SECONDS_OF_THE_HUB"])
"""
PLANT = """
planted = {{}}
exec({code!r}, planted)
limits = {{name: 3.0 if name == "hangs" else PATIENCE_SECONDS for name in {names!r}}}
runner.CHECKS += [Check("host", name, planted[name], limit) for name, limit in limits.items()]
"""


def diagnose(
    *flags: object, launcher: Sequence[object] = (), interpreter_flags: Sequence[str] = (), **options: Any
) -> Done:
    """All checks."""
    program = DOCTOR.format(changes="", first_flag=1)
    return run(*launcher, sys.executable, *interpreter_flags, "-c", program, *flags, **options)


def diagnose_some(
    names: str, *flags: object, planted: str = "", launcher: Sequence[object] = (), **options: Any
) -> Done:
    """The checks of these names, with commas between them, and every function of the code `planted`."""
    plant = PLANT.format(code=planted, names=re.findall(r"^def (\w+)", planted, re.MULTILINE)) if planted else ""
    program = DOCTOR.format(changes=SOME_CHECKS + plant, first_flag=2)
    return run(*launcher, sys.executable, "-c", program, names, *flags, **options)


def findings(done: Done) -> list[dict]:
    return json.loads(done.stdout)["findings"]


def find(done: Done, name: str, status: str) -> dict:
    """The only finding of this name and status."""
    (found,) = [found for found in findings(done) if (found["name"], found["status"]) == (name, status)]
    assert status == "ok" or found["fix"], found
    return found


def fake_package(folder: Path, name: str, version: str) -> None:
    """A distribution that is installed, as far as its metadata says."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
