"""Poison in the data: it is found, named with its documents, skipped or rolled back, and nothing else changes."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.store.manifest import read_manifest
from pretraining.training.data.order import BlockOrder
from tests.conftest import PROJECT_DIR, TINY_MODEL, Done, assert_one_error, python
from tests.programs.launching import NUM_STEPS, events, figures, records, run_forked_fine, train, try_to_train
from tests.programs.shards import assert_equal_to_the_bit

pytestmark = pytest.mark.launch

POISON_LINE = 71
POISONED_STEP = 14  # where the order of this seed has two blocks of the poisoned story, in steps of 8 blocks
SEED = 5631
STEPS = 17
SAVED_STEP = 10


@pytest.fixture(scope="module")
def poisoned_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus with one story of random words that stand nowhere else."""
    folder = tmp_path_factory.mktemp("poison")
    lines = (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()
    generator = random.Random(0)
    words = ["".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(6)) for _ in range(8)]
    lines.insert(POISON_LINE - 1, json.dumps({"text": " ".join(words), "source": "poison"}, ensure_ascii=False))
    (folder / "news.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--data_files", folder / "news.jsonl", "--block_length", 64, "--split", "95,5,0"]
    run_forked_fine(*python("preprocess.py", *words, "--output_dir", folder / "blocks"))
    return folder / "blocks"


FAULTS = ("spike", "non-finite", "rollback", "warning")
FLAGS = ["--max_steps", STEPS, "--save_steps", SAVED_STEP, "--eval_strategy", "no", "--data_seed", SEED]
FLAGS += ["--global_batch_tokens", 512, "--per_device_train_batch_size", 4]
FLAGS += ["--learning_rate", "1e-2", "--min_learning_rate", "5e-3"]
# So early the losses still vary: the score of the step is 10.9, and that of no other step is above 2.9.
FLAGS += ["--spike_threshold", 5]
FLAGS += ["--model_overrides", *TINY_MODEL, "attention_dropout=0.1"]  # random states must go back too


def train_with_faults(store: Path, run_dir: Path, *more: object, ranks: str = "2 ranks", **env: str) -> Done:
    """Starts poisoned_run.py, which finds a spike after 12 steps, and plants what the environment says."""
    return try_to_train(ranks, store, run_dir, *FLAGS, *more, script="tests/faults/drivers/poisoned_run.py", env=env)


# In two ranks a run goes back in test_non_finite.py, test_a_run_goes_back_in_place_to_its_last_finite_checkpoint.
@pytest.mark.parametrize("ranks", ["1 rank", pytest.param("2 ranks", marks=pytest.mark.long)])
@pytest.mark.guarantee("A run after a rollback equals, bit by bit, one that never read the blocks of the spike.")
def test_a_rollback_is_a_run_that_never_read_the_blocks(ranks: str, poisoned_store: Path, tmp_path: Path) -> None:
    # An export of the step before the spike has a block that is skipped in the end.
    exports = ["--export_every_tokens", (POISONED_STEP - 1) * 512]
    batch = ["--per_device_train_batch_size", 8 if ranks == "1 rank" else 4]
    goes_back = [*batch, "--on_spike", "rollback"]
    done = train_with_faults(poisoned_store, tmp_path / "run", *goes_back, *exports, ranks=ranks)
    assert done.returncode == 0, done.output[-4000:]
    faults = events(tmp_path / "run", *FAULTS)
    assert [(event["event"], event["step"]) for event in faults] == [
        ("spike", POISONED_STEP),
        ("rollback", POISONED_STEP),
    ]
    assert f"news.jsonl:{POISON_LINE} (poison)" in done.stderr
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, STEPS + 1))
    skipped = json.dumps([[(POISONED_STEP - 2) * 8, POISONED_STEP * 8]])
    other = train_with_faults(poisoned_store, tmp_path / "other", *batch, *exports, ranks=ranks, SKIPPED=skipped)
    assert other.returncode == 0, other.output[-4000:]
    assert figures(tmp_path / "run") == figures(tmp_path / "other")
    resume = ["--resume", tmp_path / f"run/checkpoint-{SAVED_STEP}"]
    assert (tmp_path / f"run/checkpoint-{STEPS}").is_dir(), "later than the spike, and not what it goes back to"
    exports = [tmp_path / name / f"exports/step-{POISONED_STEP - 1}/model.safetensors" for name in ("run", "other")]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    done = train_with_faults(poisoned_store, tmp_path / "run", *goes_back, *resume, ranks=ranks)
    assert done.returncode == 0, done.output[-4000:]
    assert figures(tmp_path / "run") == figures(tmp_path / "other")
    assert events(tmp_path / "run", *FAULTS) == faults
    assert records(tmp_path / "run")[-1]["spikes"] == 1


@pytest.mark.guarantee("A step with NaN or Inf changes nothing and is named with file and line.")
def test_a_step_that_is_no_number_is_skipped_counted_and_named(poisoned_store: Path, tmp_path: Path) -> None:
    poisoned, clean = tmp_path / "poisoned", tmp_path / "clean"
    flags = ["--max_steps", 6, "--save_strategy", "no", "--logging_steps", 2]
    block = int(order_of(poisoned_store)[8 * 3 + 5])  # in step 4
    done = train_with_faults(poisoned_store, poisoned, *flags, NAN_BLOCK=str(block))
    assert done.returncode == 0, done.output[-3000:]
    (event,) = events(poisoned, *FAULTS)
    assert (event["event"], event["step"], event["step_loss"]) == ("non-finite", 4, "nan")
    assert [found["block"] for found in event["blocks"]] == [block]
    place = event["blocks"][0]["documents"][0]
    assert "warning: step 4: loss is NaN or Inf; step skipped" in done.stderr
    assert (
        f"block {block:,} of {poisoned_store}, loss nan: {place['file']}:{place['line']} ({place['source']})"
        in done.stderr
    )
    assert [record["non_finite_steps"] for record in records(poisoned)] == [0, 1, 1]

    train("2 ranks", poisoned_store, clean, *FLAGS, *flags)
    before, around, after = zip(figures(poisoned), figures(clean), strict=True)
    assert before[0] == before[1], "until then it is the same run"
    assert records(poisoned)[1]["loss"] > records(clean)[1]["loss"], "of step 3 alone, the second is left out"
    assert after[0][0] < around[1][0], "and it learns on"
    assert records(poisoned)[1]["grad_norm"] == "inf"


@pytest.mark.long
def test_a_run_that_is_no_number_any_more_ends(poisoned_store: Path, tmp_path: Path) -> None:
    flags = ["--max_steps", 60, "--save_strategy", "no"]
    first_step = json.dumps(order_of(poisoned_store)[:8].tolist())  # which is checked by itself
    done = train_with_faults(poisoned_store, tmp_path / "run", *flags, CLEAN_BLOCKS=first_step)
    assert done.returncode != 0
    assert_one_error(done, "--learning_rate: 50 steps in a row had a NaN or Inf loss or gradient")


@pytest.mark.long
def test_the_number_of_rollbacks_is_limited(poisoned_store: Path, tmp_path: Path) -> None:
    flags = ["--on_spike", "rollback", "--max_rollbacks", 0]
    done = train_with_faults(poisoned_store, tmp_path / "run", *flags)
    assert_one_error(done, f"--max_rollbacks 0: the loss spiked again at step {POISONED_STEP} after 0 rollbacks")
    assert (tmp_path / f"run/checkpoint-{SAVED_STEP}").is_dir()


def order_of(store: Path) -> np.ndarray:
    manifest = read_manifest(store, flag="")
    return BlockOrder((manifest.splits["train"].num_blocks,), (1000,), seed=SEED).block_ids(np.arange(400))


def test_fp16_looks_for_its_loss_scale_and_both_are_recorded(sample_store: Path, tmp_path: Path) -> None:
    """A scale far too large makes gradients overflow; such steps are skipped and counted, but nothing is blamed."""
    ds_config = json.loads((PROJECT_DIR / "ds_config.json").read_text())
    ds_config["fp16"] |= {"initial_scale_power": 21, "hysteresis": 1}
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    flags = ["--fp16", "--deepspeed", tmp_path / "ds.json", "--eval_strategy", "no", "--save_steps", 3]
    flags += ["--global_batch_tokens", 256]  # products in fp16 take long on a CPU
    flags += ["--model_overrides", *TINY_MODEL, "initializer_range=0.02"]  # whose first loss is that of guessing
    done = train("2 ranks", sample_store, tmp_path / "run", *flags, script="tests/faults/drivers/fp16_run.py")
    steps = records(tmp_path / "run")
    skipped = [record["non_finite_steps"] for record in steps]
    assert skipped[0] == 1
    assert 1 <= skipped[-1] < NUM_STEPS
    assert [record["loss_scale"] for record in steps] == [2.0 ** (21 - count) for count in skipped]
    for record in steps:
        norms = [norm for name, norm in record.items() if "grad_norm/" in name]
        is_skipped = record["grad_norm"] == "inf"
        assert len(norms) == (0 if is_skipped else 5), "no norm is computed in a skipped step"
        assert is_skipped or math.hypot(*norms) == pytest.approx(record["grad_norm"], rel=1e-12)
    assert all(record["loss"] < 9.1 for record in steps)
    # Of other blocks: the mean of 252 losses, spread by 0.3, is off by 0.02, which is 0.002 of it.
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], rel=0.01), "a skipped step changes no weight"
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[1]["learning_rate"] == pytest.approx(1e-2), "a skipped step counts in the schedule"
    assert "warning" not in done.stderr
    assert not events(tmp_path / "run", *FAULTS)

    checkpoint = tmp_path / "run/checkpoint-3"
    one = [*flags, "--resume", checkpoint]
    env = {"KEPT": str(tmp_path)}
    train("1 rank", sample_store, tmp_path / "one", *one, script="tests/faults/drivers/fp16_run.py", env=env)
    assert_equal_to_the_bit(tmp_path / "restored-1", checkpoint)
    # From equal weights. 29 tensors from token to logit are rounded to fp16 (2^-11), and a logit is 0.03 of a loss.
    assert records(tmp_path / "one")[3]["loss"] == pytest.approx(steps[3]["loss"], rel=1e-3)
