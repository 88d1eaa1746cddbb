"""Start the doctor as a user does, with all checks or with some, and read what it found."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import Done, run

# The doctor with the checks named, and those of the room `planted` that the test adds to them.
SOME_CHECKS = """
import sys, types
from pretraining.doctor import checks
wanted = sys.argv[1].split(",")
checks.CHECKS[:] = [check for check in checks.CHECKS if check.name in wanted]
{planted}
from tools.doctor import main
main(sys.argv[2:])
"""
PLANT = """
planted = sys.modules["pretraining.doctor.planted"] = types.ModuleType("planted")
exec({code!r}, vars(planted))
checks.CHECKS += [checks.Check("host", name, "planted", name, 1.0) for name in {names!r}]
"""


def diagnose(*flags: object, **options: Any) -> Done:
    """All checks."""
    return run(sys.executable, "-m", "tools.doctor", *flags, **options)


def diagnose_some(
    names: str, *flags: object, planted: str = "", launcher: Sequence[object] = (), **options: Any
) -> Done:
    """The checks of these names, with commas between them, and every function of the code `planted`."""
    plant = PLANT.format(code=planted, names=re.findall(r"^def (\w+)", planted, re.MULTILINE)) if planted else ""
    return run(*launcher, sys.executable, "-c", SOME_CHECKS.format(planted=plant), names, *flags, **options)


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
