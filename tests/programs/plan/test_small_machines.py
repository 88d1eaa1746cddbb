"""What a machine does not give: shared memory, and folders that can be written."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, TINY_RUN, Done, python, run, run_fine, within_mount
from tests.fakes.exported import export_random_model
from tests.programs.launching import SEARCH_PATH, run_forked, training_flags

pytestmark = pytest.mark.launch

# Root may write everywhere unless it gives up these capabilities.
AS_OTHERS = ["--inh-caps", "-dac_override,-dac_read_search", "--bounding-set", "-dac_override,-dac_read_search"]
NEEDED = ["pretraining", "tools", "data/sample", *(path.name for path in PROJECT_DIR.glob("*.py")), "ds_config.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, sample_store: Path) -> Path:
    return export_random_model(tmp_path_factory.mktemp("exported") / "model", sample_store)


@pytest.fixture(scope="module")
def little_shared_memory() -> list[str]:
    return within_mount("mount -t tmpfs -o size=1m none /dev/shm")


@pytest.mark.long  # where it is not enough: test_batches_without_shared_memory_are_one_error
def test_little_shared_memory_is_enough(
    little_shared_memory: list[str], sample_store: Path, model: Path, tmp_path: Path
) -> None:
    """A batch of the sample corpus has 3 tensors of 2 x 64 ids of 8 bytes: 3 KB."""
    flags = training_flags(sample_store, tmp_path / "run", "--dataloader_num_workers", 2, "--max_steps", 2)
    run_fine(*little_shared_memory, *python("pretrain.py", *flags))
    run_fine(*little_shared_memory, *python("preprocess.py", "--output_dir", tmp_path / "blocks"))
    run_fine(*little_shared_memory, *python("generate.py", "--model", model, "--max_new_tokens", 2))


@pytest.mark.usefixtures("little_shared_memory")  # skips where nothing can be mounted
def test_batches_without_shared_memory_are_one_error(tmp_path: Path) -> None:
    """A batch has 64 blocks of 2,048 ids of 8 bytes: 1 MB for the ids alone."""
    shape = ["--model_overrides", "hidden_size=16", "intermediate_size=16", "num_hidden_layers=1"]
    shape += ["num_attention_heads=2", "num_key_value_heads=2", "max_position_embeddings=2048"]
    data = ["--dataset", "synthetic", "--block_length", 2048, "--vocab_size", 512, "--global_batch_tokens", "none"]
    flags = ["--per_device_train_batch_size", 64, "--dataloader_num_workers", 2, "--output_dir", tmp_path / "run"]
    command = python(
        "tests/programs/plan/little_shared_memory_run.py", *TINY_RUN, *shape, *data, *flags, "--max_steps", 2
    )
    done = run_forked(*command, env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": SEARCH_PATH})
    assert done.returncode == 2
    assert "Traceback" not in done.output
    assert len(done.errors) == 1
    assert "--dataloader_num_workers 2: /dev/shm of 1 MB has no space" in done.errors[0]
    assert "use --dataloader_num_workers 0" in done.errors[0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the programs in which nothing can be written, by root as by others."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in NEEDED:
        copy = shutil.copytree if (PROJECT_DIR / name).is_dir() else shutil.copy
        copy(PROJECT_DIR / name, folder / name)
    (folder / "home").mkdir()
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    return folder


def without_permission(checkout: Path, *words: object) -> Done:
    """A program that may read the checkout and its home folder, and write neither."""
    prefix = ["setpriv", *AS_OTHERS] if os.getuid() == 0 else []
    env = {"HOME": str(checkout / "home"), "PYTHONDONTWRITEBYTECODE": ""}
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        env[name] = ""
    return run(*prefix, "env", "-u", "HF_HOME", "-u", "XDG_CACHE_HOME", sys.executable, *words, cwd=checkout, env=env)


def test_a_checkout_that_cannot_be_written_is_one_error_with_the_flag(
    checkout: Path, sample_store: Path, model: Path
) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("only root is here, and no setpriv")
    store = ["--dataset", sample_store, "--model", "quickstart", "--global_batch_tokens", "none"]
    for words, parts in (
        (["preprocess.py"], ["--output_dir", "blocks.partial: cannot be written (Permission denied)"]),
        (["train_tokenizer.py"], ["--output_dir tokenizer: cannot be written (Permission denied)"]),
        (["pretrain.py", *store], ["--output_dir runs/quickstart: cannot be written (no permission in"]),
        (["pretrain.py", "--dataset", "synthetic", "--model", "quickstart"], ["home/.cache", "set XDG_CACHE_HOME to"]),
        (["generate.py", "--model", model, "--output", "x.jsonl"], ["--output x.jsonl: the folder . is not writable"]),
        (["-m", "tools.evaluate", model, "--data_files", "x", "--output", "x.json"], ["--output x.json: the folder ."]),
    ):
        done = without_permission(checkout, *words)
        assert done.returncode == 2, done.output[-2000:]
        assert len(done.errors) == 1, done.output[-2000:]
        assert "Traceback" not in done.output
        assert all(part in done.errors[0] for part in parts), done.errors


@pytest.mark.long  # what is written there: test_a_checkout_that_cannot_be_written_is_one_error_with_the_flag
def test_what_writes_elsewhere_works_in_such_a_checkout(
    checkout: Path, sample_store: Path, model: Path, tmp_path: Path
) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("only root is here, and no setpriv")
    done = without_permission(checkout, "generate.py", "--model", model, "--max_new_tokens", 2)
    assert done.returncode == 0, done.output[-2000:]
    blocks = ["preprocess.py", "--output_dir", tmp_path / "blocks"]
    assert without_permission(checkout, *blocks).returncode == 0
    flags = ["pretrain.py", *training_flags(sample_store, tmp_path / "run", "--max_steps", 1)]
    done = without_permission(checkout, *flags)
    assert done.returncode == 2
    assert "home/.cache" in done.errors[0]
    assert "set XDG_CACHE_HOME to a writable folder" in done.errors[0]
