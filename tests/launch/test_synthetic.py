"""Random ids train over the real path, with nothing but the run's records left behind."""

import math
from pathlib import Path

from pretraining.runs.log_lines import summary_lines
from tests.launch.launching import events, records, train


def test_random_ids_stay_random_and_nothing_is_saved(tmp_path: Path) -> None:
    run_dir, cache = tmp_path / "run", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    flags = ["--vocab_size", 512, "--block_length", 64, "--learning_rate", "1e-4"]
    flags += ["--save_strategy", "no", "--export", "false"]
    done = train("2 ranks", "synthetic", run_dir, *flags, env=cache)
    # Logits of fresh narrow weights have the variance 0.4, so a loss is 0.2 above that of guessing, with a deviation of
    # sqrt(0.4) a token: five of those of the mean of 512 tokens are 0.14.
    assert all(abs(record["loss"] - math.log(512) - 0.2) < 0.14 for record in records(run_dir))
    assert not list(run_dir.glob("checkpoint-*"))
    assert not (run_dir / "model").exists()
    assert "generate.py" not in done.output
    (summary,) = events(run_dir, "summary")
    speed = {"blocks_per_second", "overall_tokens_per_second_per_gpu", "tflops_per_second_per_gpu"}
    assert speed | {"peak_host_memory_bytes"} <= set(summary)
    assert [line for line in summary_lines(summary) if line not in done.stderr.splitlines()] == []
