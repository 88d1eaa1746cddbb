"""In place of the process of a report: it tells its number and waits for ever, but not longer than its parent lives."""

import os
import sys
import time
from pathlib import Path

from pretraining.system.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    Path(sys.argv[2], "report.pid").write_text(str(os.getpid()))
    time.sleep(600)
