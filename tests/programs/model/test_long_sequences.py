"""Whole runs with sequence parallelism and tiles: two processes that share each block train like one that has it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, TINY_MODEL, assert_one_error, python, run_fine
from tests.programs.launching import NUM_STEPS, figures, records, run_preloaded, train, try_to_train
from tests.rounding import FP32_ROUNDOFF, assert_same_training, loss_rounding

pytestmark = pytest.mark.launch

TILED = ["--loss_tiles", 3, "--mlp_tiles", 5]  # 64 tokens divide by neither
SHARED = ["--sequence_parallel_size", 2, *TILED, "--per_device_eval_batch_size", 3]


@pytest.fixture(scope="module")
def padded_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 64 tokens with more or less padding, so that no two parts weigh the same."""
    store = tmp_path_factory.mktemp("padded") / "blocks"
    packing = ["--packing", "best_fit", "--exact_duplicates", "--max_characters", 1800, "--split", "95,5,0"]
    run_fine(*python("preprocess.py", *packing, "--block_length", 64, "--output_dir", store))
    return store


@pytest.fixture(scope="module")
def one_process(padded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Accumulation 4, nothing shared, nothing tiled."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    train("1 rank", padded_store, run_dir, "--save_strategy", "no", "--eval_steps", 6, "--export", "false")
    return run_dir


@pytest.fixture(scope="module")
def shared_run(padded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes share each block, in tiles, accumulation 4, a checkpoint in the middle."""
    run_dir = tmp_path_factory.mktemp("shared") / "run"
    train("2 ranks", padded_store, run_dir, *SHARED, "--save_steps", 3, "--eval_steps", 6)
    return run_dir


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert len(figures(run_dir)) == NUM_STEPS
    assert_same_training(figures(run_dir), figures(other))
    for ours, theirs in zip(records(run_dir, "eval_loss"), records(other, "eval_loss"), strict=True):
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=loss_rounding())
        assert ours["eval_num_tokens"] == theirs["eval_num_tokens"]


@pytest.mark.parametrize("script", ["pretrain.py", "tests/programs/drivers/broken_tiles_run.py"])
def test_wrong_tiles_are_found_at_the_beginning_of_long_blocks(script: str, tmp_path: Path) -> None:
    """Blocks of 2,200 tokens, of which 2,048 are checked, without the dropout of the training."""
    model = [*TINY_MODEL[:-1], "max_position_embeddings=2200", "attention_dropout=0.2"]
    flags = ["--model_overrides", *model, "--vocab_size", 500, "--eval_strategy", "no", "--export", "false"]
    flags += ["--block_length", 2200, "--global_batch_tokens", 2200, "--max_steps", 1, *TILED]
    flags += ["--per_device_train_batch_size", 1, "--save_strategy", "no"]
    done = try_to_train("1 rank", "synthetic", tmp_path / "run", *flags, script=script)
    if script == "pretrain.py":
        assert done.returncode == 0, done.output
    else:
        assert_one_error(done, "--loss_tiles 3 --mlp_tiles 5: the loss of the first tokens differs", "by 0.01")


@pytest.mark.guarantee("Processes that share blocks train like one process.")
def test_processes_that_share_blocks_train_like_one(shared_run: Path, one_process: Path) -> None:
    assert_same_run(shared_run, one_process)


# A stage changes where the gradients go, and documents what they are: the quick one has both.
@pytest.mark.parametrize("config", ["ds_config_zero2.json", pytest.param("ds_config.json", marks=pytest.mark.long)])
def test_masked_documents_of_shared_blocks_train_like_those_of_one(
    config: str, padded_store: Path, tmp_path: Path
) -> None:
    """One process makes a mask; two attend document by document, to whole ones of which each has a part."""
    flags = ["--document_masking", "--save_strategy", "no", "--eval_steps", 6, "--export", "false"]
    train("1 rank", padded_store, tmp_path / "one", *flags)
    train("2 ranks", padded_store, tmp_path / "two", *SHARED, *flags, "--deepspeed", PROJECT_DIR / config)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.long  # up to rounding: the next test; of whole blocks: test_a_resumed_run_equals_one_never_stopped
def test_a_resumed_run_of_shared_blocks_equals_one_never_stopped(
    shared_run: Path, padded_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(shared_run, run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    shutil.rmtree(run_dir / "model")
    flags = [*SHARED, "--eval_steps", 6, "--export", "false"]
    train("2 ranks", padded_store, run_dir, *flags)
    assert figures(run_dir) == figures(shared_run)


def test_a_run_of_shared_blocks_goes_on_with_whole_ones(shared_run: Path, padded_store: Path, tmp_path: Path) -> None:
    flags = ["--resume", shared_run / "checkpoint-3", "--save_strategy", "no", "--eval_steps", 6, "--export", "false"]
    train("1 rank", padded_store, tmp_path / "run", *flags)
    assert_same_run(tmp_path / "run", shared_run)


@pytest.mark.guarantee("Tiles train like complete blocks.")
def test_tiles_train_like_whole_blocks(one_process: Path, padded_store: Path, tmp_path: Path) -> None:
    """In data parallel processes, all in host memory, activation checkpointing around the tiles."""
    flags = [*TILED, "--activation_checkpointing", "--deepspeed", PROJECT_DIR / "ds_config_offload.json"]
    flags += ["--save_strategy", "no", "--eval_steps", 6, "--export", "false"]
    train("2 ranks", padded_store, tmp_path / "run", *flags)
    assert_same_run(tmp_path / "run", one_process)


def test_attention_of_a_group_is_that_of_one_process() -> None:
    """Loss and every gradient, with documents kept apart or not, in fp64.

    There the order of sums changes 1e-12 of them: the path of some 1,000 terms in each direction, 2^-53 each, ten times
    over where they cancel. transformers' norms compute in fp32 all the same, where a last bit may turn: 16 of those.
    """
    script = PROJECT_DIR / "tests/programs/drivers/sequence_parallel_model.py"
    done = run_preloaded(2, [script], {})
    assert done.returncode == 0, done.output
    results = [line.split() for line in done.stdout.splitlines() if "difference=" in line]
    assert [words[0] for words in results] == ["within_documents=False", "within_documents=True"]
    assert results[0][1] != results[1][1], "documents were not kept apart"
    assert all(float(words[2].removeprefix("difference=")) < 16 * FP32_ROUNDOFF for words in results)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sequence_parallel_size", 2], ["--sequence_parallel_size 2", "1 processes"]),
        (["--sequence_parallel_size", 2, "--attention_implementation", "eager"], ["eager attention needs the mask"]),
        (["--mlp_tiles", 0], ["--mlp_tiles 0"]),
        (["--mlp_tiles", 2, "--use_liger_kernel", "true"], ["--use_liger_kernel: its kernels would replace"]),
        (["--mlp_tiles", 2, "--compile_layers"], ["--compile_layers: a layer with --mlp_tiles"]),
        (
            ["--compile_layers", "--document_masking", "--attention_implementation", "flash_attention_2"],
            ["--compile_layers --document_masking: with flash attention"],
        ),
    ],
)
def test_what_cannot_be_is_refused(flags: list[object], words: list[str], sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("1 rank", sample_store, tmp_path / "run", *flags)
    of_machine = ("not installed", "needs liger", "torch.compile does not work")
    log = [line for line in done.log.splitlines() if not any(words in line for words in of_machine)]
    assert_one_error(replace(done, log="\n".join(log)), *words)
