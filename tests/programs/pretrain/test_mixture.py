"""Whole runs on several stores: shares are exact, figures told by source, and the processes do not matter."""

from pathlib import Path

import pytest

from pretraining.data.store.manifest import read_manifest
from tests.conftest import python, run_fine
from tests.programs.launching import NUM_STEPS, figures, records, train
from tests.rounding import assert_same_training, loss_rounding

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def mixture(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    store = tmp_path_factory.mktemp("wiki") / "blocks"
    words = ["--block_length", 64, "--split", "90,5,5", "--max_characters", 1500, "--output_dir", store]
    run_fine(*python("preprocess.py", *words))
    return [f"news={sample_store}:0.75", f"wiki={store}:0.25"]


@pytest.mark.guarantee("A mixture trains in two processes like in one, with metrics by source.")
def test_two_processes_train_on_a_mixture_like_one(mixture: list[str], sample_store: Path, tmp_path: Path) -> None:
    """With documents isolated and their first tokens masked, so that blocks weigh differently."""
    flags = ["--dataset", *mixture, "--document_masking", "--ignore_first_token", "--save_strategy", "no"]
    flags += ["--export", "false"]
    done = train("2 ranks", "unused", tmp_path / "two", *flags)
    train("1 rank", "unused", tmp_path / "one", *flags, "--dataloader_num_workers", 1)
    assert "source news: 750 of 1,000 blocks" in done.stderr
    assert_same_training(figures(tmp_path / "one"), figures(tmp_path / "two"))

    last = records(tmp_path / "two")[-1]
    assert last["tokens/news"] + last["tokens/wiki"] < NUM_STEPS * 8 * 63, "first tokens count nothing"
    assert last["tokens/news"] / last["tokens/wiki"] == pytest.approx(3, rel=0.05)
    news = read_manifest(sample_store, flag="").splits["train"].num_blocks
    assert last["epoch/news"] == pytest.approx(0.75 * NUM_STEPS * 8 / news)
    for key in ("eval_loss", "test_loss"):
        ours, theirs = records(tmp_path / "one", key)[-1], records(tmp_path / "two", key)[-1]
        prefix = key.removesuffix("loss")
        for name in ("loss", "accuracy", "bits_per_byte", "num_tokens"):
            for source in ("", "/news", "/wiki"):
                figure = f"{prefix}{name}{source}"
                assert ours[figure] == pytest.approx(
                    theirs[figure], rel=loss_rounding() if name != "accuracy" else 0.1
                ), figure
