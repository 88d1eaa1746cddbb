"""Starts pretrain.py; the process of its report fails, never ends, or cannot be started, as UNREPORTED says."""

import os
import sys

import pretrain
from pretraining.cli.program import run_program
from pretraining.runs.report import background as report_process

if __name__ == "__main__":
    how = os.environ["UNREPORTED"]
    if how == "fails":
        report_process.MODULE = "tests.faults.no_such_module"
    elif how == "hangs":
        from pretraining.training.callbacks import report as run_report

        report_process.MODULE = "tests.faults.drivers.report.endless_report"
        run_report.END_SECONDS = 1.0
    else:
        sys.executable = "/nowhere/python3"
    run_program(pretrain.main)
