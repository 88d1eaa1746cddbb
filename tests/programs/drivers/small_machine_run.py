"""pretrain.py on a machine that has no more memory to give than AVAILABLE_MEMORY says, in bytes, whatever it has."""

import os
import runpy
import sys
import tempfile
from pathlib import Path

from pretraining.system import host

PROJECT_DIR = Path(__file__).parents[3]


def main() -> None:
    host.ROOT = Path(tempfile.mkdtemp())
    (host.ROOT / "proc").mkdir()
    (host.ROOT / "proc/meminfo").write_text(f"MemAvailable: {int(os.environ['AVAILABLE_MEMORY']) // 1024} kB\n")
    sys.argv[0] = str(PROJECT_DIR / "pretrain.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
