"""Run a program whose clients of the Hub do not wait between their attempts: impatient_run.py PROGRAM FLAGS."""

import runpy
import sys
import time

CLIENTS = ("huggingface_hub", "datasets", "fsspec", "pretraining.hub")
real_sleep = time.sleep


def sleep(seconds: float) -> None:
    if not sys._getframe(1).f_globals["__name__"].startswith(CLIENTS):
        real_sleep(seconds)


time.sleep = sleep
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
