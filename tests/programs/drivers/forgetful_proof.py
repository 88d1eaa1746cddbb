"""tools.resume_proof of tests/faults/drivers/forgetful_run.py, killed once, after step 7."""

from pathlib import Path

from pretraining.cli.program import run_program
from tools import resume_proof

if __name__ == "__main__":
    resume_proof.PROGRAM = Path(__file__).parents[2] / "faults/drivers/forgetful_run.py"
    resume_proof.plan_kills = lambda *_, **__: [resume_proof.Kill("step", 7, 0.0, "everything")]
    run_program(resume_proof.main)
