"""Random ids train over the real path, with nothing but the run's records left behind."""

import math
from pathlib import Path

from pretraining.runs.tracking.console import summary_lines
from tests.conftest import TINY_MODEL
from tests.programs.launching import events, records, train


def test_random_ids_stay_random_and_nothing_is_saved(tmp_path: Path) -> None:
    run_dir, cache = tmp_path / "run", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    flags = ["--vocab_size", 512, "--block_length", 64, "--learning_rate", "1e-4"]
    # So small that fresh weights guess: their logits differ by 0.02 * sqrt(32) = 0.11.
    flags += ["--save_strategy", "no", "--export", "false", "--model_overrides", *TINY_MODEL, "initializer_range=0.02"]
    done = train("1 rank", "synthetic", run_dir, *flags, env=cache)
    assert all(abs(record["loss"] - math.log(512)) < 0.05 for record in records(run_dir))
    assert not list(run_dir.glob("checkpoint-*"))
    assert not (run_dir / "model").exists()
    assert "generate.py" not in done.output
    (summary,) = events(run_dir, "summary")
    speed = {"blocks_per_second", "overall_tokens_per_second_per_gpu", "tflops_per_second_per_gpu"}
    assert speed | {"peak_host_memory_bytes"} <= set(summary)
    assert [line for line in summary_lines(summary) if line not in done.stderr.splitlines()] == []
