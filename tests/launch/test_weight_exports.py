"""Exports on the way: they change nothing in the run, and are never made twice."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY_MODEL, python, run_fine
from tests.launch.launching import figures, records, train

pytestmark = pytest.mark.launch

FLAGS = ["--model_overrides", *TINY_MODEL, "attention_dropout=0.1", "--save_steps", 3, "--eval_steps", 3]
EXPORTS = ["--export_every_tokens", 1000]  # two steps have 1,024


def test_exports_change_nothing_in_the_run(sample_store: Path, tmp_path: Path) -> None:
    """Not in one with dropout, whose random state shows in every loss; nor does going on make them again."""
    run_dir, other = tmp_path / "run", tmp_path / "other"
    done = train("2 ranks", sample_store, run_dir, *FLAGS, *EXPORTS)
    train("2 ranks", sample_store, other, *FLAGS)
    assert figures(run_dir) == figures(other)
    for key in ("eval_loss", "test_loss"):
        assert [record[key] for record in records(run_dir, key)] == [record[key] for record in records(other, key)]

    exports = run_dir / "exports"
    assert sorted(path.name for path in exports.iterdir()) == ["step-2", "step-4", "step-6"]
    assert {path.name for path in (exports / "step-2").iterdir()} == {path.name for path in (other / "model").iterdir()}
    for path in (exports / "step-6").iterdir():
        assert path.name == "README.md" or path.read_bytes() == (other / "model" / path.name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
    for number in (2, 4):
        assert f"This is step {number} of 6" in (exports / f"step-{number}/README.md").read_text()
    assert f"exported model: {exports}/step-4 (loss " in done.stderr
    assert f"exported model: {run_dir}/model (loss " in done.stderr

    before = {path: path.stat().st_ctime_ns for path in exports.rglob("*")}
    shutil.rmtree(run_dir / "checkpoint-6")
    shutil.rmtree(run_dir / "model")
    done = train("2 ranks", sample_store, run_dir, *FLAGS, *EXPORTS)
    assert done.stderr.count("is there from before, and kept") == 2
    assert {path: path.stat().st_ctime_ns for path in exports.rglob("*")} == before
    assert figures(run_dir) == figures(other)

    done = run_fine(*python("generate.py", "--model", exports / "step-2", "--max_new_tokens", 3, "--prompt", "The"))
    assert done.stdout.startswith("The")
