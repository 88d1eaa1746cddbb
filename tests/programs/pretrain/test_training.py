"""Whole runs of pretrain.py: each launcher, resume, offload, and the plain Trainer give the same training."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretraining.data.store.manifest import read_manifest
from pretraining.training.build import ORDER
from tests.conftest import PROJECT_DIR, python, run_fine
from tests.programs.launching import BLOCKS_PER_STEP, NUM_STEPS, figures, group_norms, records, run_forked_fine, train
from tests.rounding import assert_same_training, loss_rounding, norm_rounding

pytestmark = pytest.mark.launch
# Two processes have other numbers of threads than one, which add up in another order. With one thread in each, every
# sum has one order, so that runs are equal.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
STEPS_ALONE = ["--save_strategy", "no", "--eval_strategy", "no", "--export", "false"]


@pytest.fixture(scope="module")
def reference_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, accumulation 2, a checkpoint in the middle."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    done = train("2 ranks", sample_store, run_dir, "--save_steps", 3, "--eval_steps", 3)
    assert "error" not in done.stderr.lower().replace("errors", "")
    return run_dir


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert len(figures(run_dir)) == NUM_STEPS
    assert_same_training(figures(run_dir), figures(other))
    np.testing.assert_allclose(group_norms(run_dir), group_norms(other), rtol=norm_rounding())


def test_the_run_folder_has_everything(reference_run: Path) -> None:
    names = {path.name for path in reference_run.iterdir()}
    assert names >= {"run.json", "metrics.jsonl", "tensorboard", "checkpoint-3", "checkpoint-6", "model", "tokenizer"}
    assert list((reference_run / "tensorboard").rglob("events.out.tfevents*"))
    record = json.loads((reference_run / "run.json").read_text())
    assert record["num_parameters"] == 542_880
    assert record["identity"]["global_batch_tokens"] == 512
    assert record["ds_config"]["zero_optimization"]["stage"] == 3
    assert record["arguments"]["gradient_accumulation_steps"] == 2


def test_a_checkpoint_does_not_grow_with_the_steps(reference_run: Path) -> None:
    state = json.loads((reference_run / "checkpoint-6/trainer_state.json").read_text())
    assert [list(record)[:2] for record in state["log_history"]] == [["epoch", "eval_accuracy"]] * 2


def test_the_callbacks_of_a_run_are_in_their_order(reference_run: Path) -> None:
    state = json.loads((reference_run / "checkpoint-6/trainer_state.json").read_text())
    order = [callback.__name__ for callback in ORDER]
    names = [name for name in state["stateful_callbacks"] if name in order]
    assert len(names) >= 2
    assert names == sorted(names, key=order.index)


def test_each_step_is_logged_and_the_loss_falls_from_that_of_guessing(reference_run: Path) -> None:
    steps = records(reference_run)
    assert [record["step"] for record in steps] == list(range(1, NUM_STEPS + 1))
    # Fresh weights of a narrow model have the variance 2 / (5 width): logits that of 2 / 5, which adds half of it.
    assert steps[0]["loss"] == pytest.approx(math.log(8192) + 0.2, rel=0.02)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.2
    assert all(record["tokens"] == record["step"] * 512 for record in steps)
    assert all(0 <= record["accuracy"] < 0.2 for record in steps)
    assert all(record["tokens_per_second_per_gpu"] > 0 for record in steps)
    assert "mfu" not in steps[-1], "no GPU, so no peak and no MFU"
    assert steps[-1]["seconds_left"] == 0


@pytest.mark.guarantee("The squares of the gradient norms by group of parameters sum to that of the whole gradient.")
def test_the_gradient_norms_of_the_groups_add_up(reference_run: Path) -> None:
    """All are computed in fp64, from some twenty norms of parameters."""
    squares = np.square(group_norms(reference_run)).sum(axis=1)
    np.testing.assert_allclose(np.sqrt(squares), [norm for _, norm in figures(reference_run)], rtol=1e-14)


def test_validation_is_measured_while_training_and_test_at_the_end(reference_run: Path) -> None:
    assert [record["step"] for record in records(reference_run, "eval_loss")] == [3, 6]
    (test,) = records(reference_run, "test_loss")
    assert test["test_perplexity"] == pytest.approx(math.exp(test["test_loss"]))
    assert 0 < test["test_accuracy"] < 0.2
    assert 2 < test["test_bits_per_byte"] < 4


def test_the_figures_of_the_sources_add_up(reference_run: Path) -> None:
    sources = ("business", "local", "science", "sport", "world")
    (test,) = records(reference_run, "test_loss")
    for name in ("loss", "accuracy"):
        weighted = sum(test[f"test_{name}/{source}"] * test[f"test_num_tokens/{source}"] for source in sources)
        assert weighted / test["test_num_tokens"] == pytest.approx(test[f"test_{name}"])
    assert sum(test[f"test_num_tokens/{source}"] for source in sources) == test["test_num_tokens"]
    for record in records(reference_run):
        assert sum(record[f"tokens/{source}"] for source in sources) == record["step"] * 8 * 63
        assert min(record[f"loss/{source}"] for source in sources if f"loss/{source}" in record) < record["loss"]


# A rank of the launcher writes down what it was given; a fork with the same words and variables is the rank then.
AS_TOLD = """
import json, os, runpy, sys
from pathlib import Path
told = Path(os.environ["TOLD"], os.environ["RANK"])
if told.exists():
    sys.argv[1:], variables = json.loads(told.read_text())
    os.environ.clear()
    os.environ.update(variables)
    runpy.run_path("pretrain.py", run_name="__main__")
else:
    told.write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


@pytest.mark.guarantee("Every launcher gives the same run.")
def test_ranks_that_deepspeed_starts_give_the_same_run(reference_run: Path, sample_store: Path, tmp_path: Path) -> None:
    """There is no path, as where the packages lie in a folder of PYTHONPATH, whose scripts are on no PATH."""
    script, run_dir = tmp_path / "as_told.py", tmp_path / "run"
    script.write_text(AS_TOLD)
    options: dict[str, Any] = {"script": script, "env": {"TOLD": str(tmp_path), "PATH": ""}}
    train("deepspeed", sample_store, run_dir, *STEPS_ALONE, **options)
    assert [json.loads((tmp_path / rank).read_text())[1]["LOCAL_RANK"] for rank in "01"] == ["0", "1"]
    assert not run_dir.exists()
    train("2 ranks", sample_store, run_dir, *STEPS_ALONE, **options)
    assert figures(run_dir) == figures(reference_run)


# Whole starts, 12 to 20 s each; the words and variables of deepspeed's ranks are held by the test above. Runs under
# torchrun and mpirun are started by tests/faults/test_supervise.py as well.
@pytest.mark.long
@pytest.mark.parametrize("name", ["deepspeed", "torchrun", "mpirun", "accelerate"])
@pytest.mark.guarantee("Every launcher gives the same run.")
def test_every_launcher_gives_the_same_run(name: str, reference_run: Path, sample_store: Path, tmp_path: Path) -> None:
    train(name, sample_store, tmp_path / "run", *STEPS_ALONE, env=ONE_THREAD)
    assert figures(tmp_path / "run") == figures(reference_run)


@pytest.mark.guarantee("Every micro batch gives the same run.")
def test_one_process_with_more_accumulation_is_the_same_run(
    reference_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    """Micro batches of one block in place of two, eight of them in place of two in each of two processes."""
    workers = ["--dataloader_num_workers", 1, "--dataloader_prefetch_factor", 3]
    flags = ["--save_strategy", "no", "--eval_steps", 3, "--per_device_train_batch_size", 1, *workers]
    train("fork", sample_store, tmp_path / "run", *flags)
    assert json.loads((tmp_path / "run/run.json").read_text())["arguments"]["gradient_accumulation_steps"] == 8
    assert_same_run(tmp_path / "run", reference_run)
    for key in ("eval_loss", "test_loss"):  # 52 and 44 blocks do not divide by the processes alike
        ours, theirs = records(tmp_path / "run", key)[-1], records(reference_run, key)[-1]
        assert ours[key] == pytest.approx(theirs[key], rel=loss_rounding())
        num_tokens = key.replace("loss", "num_tokens")
        assert ours[num_tokens] == theirs[num_tokens]


@pytest.mark.long  # another micro batch and number of them: the test above
@pytest.mark.parametrize(("name", "micro_batch"), [("1 rank", 2), ("1 rank", 8), ("2 ranks", 4)])
@pytest.mark.guarantee("Every micro batch gives the same run.")
def test_a_step_divided_otherwise_is_the_same_run(
    name: str, micro_batch: int, reference_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    """In one process 2 blocks x 4 micro steps (1 x 8 is above) and 8 x 1, in two processes 4 x 1."""
    flags = [*STEPS_ALONE, "--per_device_train_batch_size", micro_batch]
    train(name, sample_store, tmp_path / "run", *flags)
    assert_same_run(tmp_path / "run", reference_run)


@pytest.mark.long  # held by test_tiles_train_like_whole_blocks in tests/programs/model/test_long_sequences.py
def test_padded_blocks_train_the_same_however_they_are_shared(tmp_path: Path) -> None:
    """Blocks with more or less padding weigh by their tokens, in whatever micro batch or process they are."""
    store = tmp_path / "blocks"
    packing = ["--packing", "best_fit", "--exact_duplicates", "--max_characters", 1800, "--split", "80,20,0"]
    run_fine(*python("preprocess.py", *packing, "--block_length", 64, "--output_dir", store))
    flags = ["--save_strategy", "no", "--eval_steps", 3]
    train("2 ranks", store, tmp_path / "two", *flags)
    train("1 rank", store, tmp_path / "one", *flags, "--per_device_train_batch_size", 1)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    ours, theirs = (records(tmp_path / name, "eval_loss")[-1] for name in ("one", "two"))
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=loss_rounding())
    splits = read_manifest(store, flag="").splits
    assert all(splits[name].num_padding_tokens > 10 for name in ("train", "validation"))


@pytest.mark.guarantee("A resumed run equals an uninterrupted one, bit by bit.")
def test_a_resumed_run_equals_one_never_stopped(reference_run: Path, sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference_run, run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    shutil.rmtree(run_dir / "model")
    log = run_dir / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 1,', '"step": 1, "from_before": true,') + '{"step": 6, "lo')
    done = train("2 ranks", sample_store, run_dir, "--eval_steps", 3)
    assert f"resuming from {run_dir}/checkpoint-3" in done.stderr
    assert [record["step"] for record in records(run_dir, "from_before")] == [1], "steps before were trained again"
    assert figures(run_dir) == figures(reference_run)
    assert len(json.loads((run_dir / "run.json").read_text())["earlier_starts"]) == 1
    assert [record["step"] for record in records(run_dir)] == list(range(1, NUM_STEPS + 1))
    for name in ("eval_loss", "test_loss"):
        assert [record[name] for record in records(run_dir, name)] == [
            record[name] for record in records(reference_run, name)
        ]


@pytest.mark.long  # held by test_a_run_that_has_reached_its_target_only_finishes_when_it_is_started_again
def test_a_finished_run_that_is_resumed_is_evaluated_and_exported_again(
    reference_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    """As after a disk that was full at the export: nothing is trained beyond the end."""
    run_dir = tmp_path / "run"
    shutil.copytree(reference_run, run_dir)
    shutil.rmtree(run_dir / "model")
    train("2 ranks", sample_store, run_dir, "--eval_steps", 3)
    assert figures(run_dir) == figures(reference_run)
    assert records(run_dir, "test_loss")[-1]["test_loss"] == records(reference_run, "test_loss")[-1]["test_loss"]
    assert (run_dir / "model/model.safetensors").is_file()


OFFLOAD = ["--deepspeed", PROJECT_DIR / "ds_config_offload.json"]
CHECKPOINTING = ["--activation_checkpointing", "--attention_implementation", "eager"]


# One of them alone is long: what either changes is seen where both are.
@pytest.mark.parametrize(
    "flags",
    [[*OFFLOAD, *CHECKPOINTING], *(pytest.param(flags, marks=pytest.mark.long) for flags in (OFFLOAD, CHECKPOINTING))],
    ids=["both", "offload", "activation_checkpointing"],
)
@pytest.mark.guarantee("Offload gives the same run.")
@pytest.mark.guarantee("Activation checkpointing gives the same run.")
def test_offload_and_activation_checkpointing_train_the_same(
    flags: list[object], reference_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    """The old spelling of offload is that of test_a_config_of_megatron_trains_as_it_is."""
    run_dir = tmp_path / "run"
    done = train("2 ranks", sample_store, run_dir, *STEPS_ALONE, *flags)
    record = json.loads((run_dir / "run.json").read_text())
    if OFFLOAD[1] in flags:
        used = record["ds_config_resolved"]
        assert used["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
        assert used["zero_force_ds_cpu_optimizer"] is False
    if CHECKPOINTING[0] in flags:
        assert record["arguments"]["activation_checkpointing"] is True
        assert record["arguments"]["attention_implementation"] == "eager"
    assert "old spelling" not in done.stderr
    assert_same_run(run_dir, reference_run)


# How far the loss falls in as many steps. The hundred of the promise are long; the bounds of the twenty are the same.
FALLS = {20: 0.2, 100: 1.0}


@pytest.fixture(scope="module", params=[20, pytest.param(100, marks=pytest.mark.long)])
def instrumented_run(
    request: pytest.FixtureRequest, sample_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run_dir = tmp_path_factory.mktemp("instrumented") / "run"
    flags = [
        "--max_steps",
        request.param,
        "--lr_scheduler_type",
        "constant",
        "--warmup_steps",
        0,
        "--save_strategy",
        "no",
    ]
    flags += [
        "--eval_strategy",
        "no",
        "--learning_rate",
        "1e-3",
    ]  # at 1e-2 rounding grows to 1 % within 100 steps, whoever trains
    train("2 ranks", sample_store, run_dir, *flags, script="tests/programs/drivers/instrumented_run.py")
    return run_dir


@pytest.mark.guarantee(
    "ZeRO-3 in two processes trains like the plain Trainer in one: losses to 1e-4 over 20 steps (make faults: 100)."
)
def test_zero3_equals_the_plain_trainer_over_a_hundred_steps(
    instrumented_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    ours = figures(instrumented_run)
    config = json.dumps(json.loads((instrumented_run / "run.json").read_text())["identity"]["model_config"])
    weights = instrumented_run / "first_weights.pt"
    script = PROJECT_DIR / "tests/programs/drivers/plain_run.py"
    words = [weights, config, sample_store, tmp_path, BLOCKS_PER_STEP, len(ours)]
    run_forked_fine(sys.executable, script, *words)
    steps = json.loads((tmp_path / "records.json").read_text())
    plain = [(record["loss"], record["grad_norm"]) for record in steps]
    by_group = [record["by_group"] for record in steps]
    np.testing.assert_allclose(group_norms(instrumented_run), by_group, rtol=norm_rounding())
    assert_same_training(ours, plain)
    assert ours[-1][0] < ours[0][0] - FALLS[len(ours)]


EVERYBODYS_TOOLS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
run = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(run + "/model", dtype=torch.float32)
kept = torch.load(run + "/logits.pt")
with torch.no_grad():
    off = (model(kept["block"]).logits - kept["logits"]).abs().max()
assert off <= float(sys.argv[2]) * kept["logits"].abs().max(), off
print(pipeline("text-generation", model=run + "/model")("The council", max_new_tokens=5)[0]["generated_text"])
assert AutoTokenizer.from_pretrained(run + "/model").eos_token == "</s>"
assert "pretraining" not in sys.modules
"""


@pytest.mark.guarantee("The exported model opens with transformers alone and has the logits of training.")
def test_the_exported_model_is_everybodys_and_has_the_trainers_logits(instrumented_run: Path, tmp_path: Path) -> None:
    done = run_fine(
        sys.executable, "-c", EVERYBODYS_TOOLS, instrumented_run, loss_rounding(), cwd=tmp_path, env=ONE_THREAD
    )
    assert done.stdout.startswith("The council")
    config = json.loads((instrumented_run / "model/config.json").read_text())
    assert (config["use_cache"], config["rope_theta"]) == (True, 10000.0)
    tokenizer_config = json.loads((instrumented_run / "model/tokenizer_config.json").read_text())
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast", "which transformers 4 can open"
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (instrumented_run / "model").iterdir())
    assert not list((instrumented_run / "model").glob("*.bin")), "no pickles in an exported model"


def test_fresh_weights_have_the_right_spread(instrumented_run: Path) -> None:
    import torch

    for name, weight in torch.load(instrumented_run / "first_weights.pt").items():
        if "norm" in name:
            assert (weight == 1).all(), name
        else:
            # The smallest has 1,024 numbers, whose spread is off by 1 / sqrt(2 * 1024): five times that is 0.11.
            assert weight.std().item() == pytest.approx(math.sqrt(2 / (5 * 32)), rel=0.11), name
