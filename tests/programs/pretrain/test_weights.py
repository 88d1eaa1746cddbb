"""Whole runs that train on from a model: they start where it ended, and what does not fit is one line before that."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.conftest import PROJECT_DIR, Done, assert_one_error, python, run_fine
from tests.fakes.exported import export_random_model
from tests.programs.launching import SEARCH_PATH, figures, records, run_forked_fine, run_preloaded, train
from tests.rounding import loss_rounding
from tools.evaluate import main as evaluate

pytestmark = pytest.mark.launch

FLAGS = ["--bf16", "false", "--report", "false", "--global_batch_tokens", 512, "--per_device_train_batch_size", 2]
FLAGS += ["--per_device_eval_batch_size", 8, "--warmup_steps", 0]
NO_CHANGE = ["--learning_rate", "1e-30", "--max_steps", 1]  # far below the roundoff of any weight
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def try_to_continue(weights: object, store: Path, run_dir: Path, *flags: object, ranks: int = 2, **options) -> Done:
    script = PROJECT_DIR / options.get("script", "pretrain.py")
    words = [script, "--weights", weights, "--dataset", store, "--output_dir", run_dir, *FLAGS, *flags]
    return run_preloaded(ranks, words, {"PYTHONPATH": SEARCH_PATH})


def continue_from(weights: object, store: Path, run_dir: Path, *flags: object, ranks: int = 2) -> Done:
    done = try_to_continue(weights, store, run_dir, *flags, ranks=ranks)
    assert done.returncode == 0, done.output[-6000:]
    return done


@pytest.fixture(scope="module")
def parent(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("parent") / "run"
    train("2 ranks", sample_store, run_dir, "--eval_strategy", "no", "--save_steps", 6, "--license", "apache-2.0")
    return run_dir


@pytest.fixture(scope="module")
def unchanged(parent: Path, sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    run_dir = tmp_path_factory.mktemp("unchanged") / "run"
    done = continue_from(parent, sample_store, run_dir, *NO_CHANGE, "--eval_on_start", "true", "--save_strategy", "no")
    return run_dir, done


@pytest.mark.guarantee("A run with --weights starts with the loss of its parent, by tools.evaluate.")
def test_the_first_losses_are_those_of_the_parent(
    parent: Path, unchanged: tuple[Path, Done], sample_store: Path, tmp_path: Path
) -> None:
    run_dir, done = unchanged
    output = tmp_path / "found.json"
    evaluate([str(word) for word in (parent, "--dataset", sample_store, "--split", "validation", "--output", output)])
    (first, *_) = records(run_dir, "eval_loss")
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(json.loads(output.read_text())["total"]["loss"], rel=loss_rounding())
    (at_end, *_) = records(parent, "eval_loss")
    assert first["eval_loss"] == at_end["eval_loss"], "the same weights on the same ranks, to the bit"
    assert f"model: {parent}/model (config and weights), " in done.stderr
    assert "equal to that of its files" in done.stderr
    assert f"its own held-out loss was {at_end['eval_loss']:.4f}" in done.stderr
    assert "fresh weights" not in done.stderr


@pytest.mark.guarantee("A run with --weights that learns nothing exports the bytes of its parent.")
def test_weights_that_do_not_change_are_exported_as_the_same_bytes(parent: Path, unchanged: tuple[Path, Done]) -> None:
    run_dir, _ = unchanged
    assert (run_dir / "model/model.safetensors").read_bytes() == (parent / "model/model.safetensors").read_bytes()
    record = json.loads((run_dir / "run.json").read_text())
    assert record["identity"]["initial_weights"].keys() == {"model.safetensors"}
    assert [record["step"] for record in records(run_dir)] == [1]


def test_zero_shards_are_the_same_parent(parent: Path, sample_store: Path, tmp_path: Path) -> None:
    """On one rank, from the shards of two."""
    shards = shutil.copytree(parent / "checkpoint-6", tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    shutil.copytree(parent / "tokenizer", tmp_path / "tokenizer")
    continue_from(shards, sample_store, tmp_path / "run", *NO_CHANGE, "--save_strategy", "no", ranks=1)
    exported = [(folder / "model/model.safetensors").read_bytes() for folder in (tmp_path / "run", parent)]
    assert exported[0] == exported[1]


def test_a_parent_in_bf16_keeps_its_bytes_in_bf16(sample_store: Path, tmp_path: Path) -> None:
    """Its config is taken, tied embeddings included; a loss on 512 tokens refuses no weights, not even random ones."""
    model = export_random_model(tmp_path / "model", sample_store, dtype=torch.bfloat16, tie_word_embeddings=True)
    flags = [*NO_CHANGE, "--save_strategy", "no", "--bf16", "true"]
    continue_from(model, sample_store, tmp_path / "run", *flags, "--eval_strategy", "no", ranks=1)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run/model", model))
    assert found.keys() == expected.keys()
    assert HEAD not in found
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tensor_that_training_reads_wrongly_stops_the_run(parent: Path, sample_store: Path, tmp_path: Path) -> None:
    script = "tests/programs/pretrain/wrong_weights_run.py"
    done = try_to_continue(parent, sample_store, tmp_path / "run", *NO_CHANGE, script=script)
    assert_one_error(done, f"--weights {parent}: its loss on the first block is", "in training it is")
    assert not (tmp_path / "run/model").exists()


def test_the_card_names_the_parent(unchanged: tuple[Path, Done], parent: Path) -> None:
    card = (unchanged[0] / "model/README.md").read_text()
    assert "trained on from `run/model` on 512 tokens" in card
    assert "- Started from the weights of `run/model`; xxh3 of its files: `model.safetensors` `" in card
    assert "- The license of `run/model` is `apache-2.0`, by its own card" in card
    assert str(parent) not in card


@pytest.fixture(scope="module")
def longer_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with a tokenizer of three tokens more, which are frequent in it."""
    folder = tmp_path_factory.mktemp("longer")
    shutil.copytree(PROJECT_DIR / "data/sample/tokenizer", folder / "tokenizer")
    path = folder / "tokenizer/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    assert tokenizer.add_tokens([" government", " people", " company"]) == 3
    tokenizer.save(str(path))
    words = ["--tokenizer", folder / "tokenizer", "--block_length", 64, "--split", "90,5,5"]
    run_fine(*python("preprocess.py", *words, "--output_dir", folder / "blocks"))
    return folder / "blocks"


@pytest.mark.guarantee("--grow_vocabulary keeps every row of the parent, and its run resumes bit by bit.")
def test_a_grown_vocabulary_keeps_its_rows_and_resumes(parent: Path, longer_store: Path, tmp_path: Path) -> None:
    refused = try_to_continue(parent, longer_store, tmp_path / "refused", "--max_steps", 1, ranks=1)
    assert_one_error(refused, "has 3 tokens more than that of --weights", "pass --grow_vocabulary")

    grow = ["--grow_vocabulary", "--save_strategy", "no"]
    continue_from(parent, longer_store, tmp_path / "kept", *NO_CHANGE, *grow, "--eval_strategy", "no")
    old, new = (load_file(folder / "model/model.safetensors") for folder in (parent, tmp_path / "kept"))
    size = len(old[EMBEDDING])
    for name in (EMBEDDING, HEAD):
        assert len(new[name]) == size + 3
        assert torch.equal(new[name][:size], old[name])
        torch.testing.assert_close(new[name][size:], old[name].double().mean(dim=0).float().expand(3, -1))
    assert all(torch.equal(new[name], old[name]) for name in old.keys() - {EMBEDDING, HEAD})

    flags = ["--grow_vocabulary", "--learning_rate", "1e-2", "--max_steps", 3, "--save_steps", 2]
    flags += ["--eval_strategy", "no"]
    through = tmp_path / "through"
    continue_from(parent, longer_store, through, *flags, ranks=1)
    stopped = shutil.copytree(through, tmp_path / "stopped")
    for name in ("checkpoint-3", "model"):
        shutil.rmtree(stopped / name)
    done = continue_from(parent, longer_store, stopped, *flags, ranks=1)
    assert f"resuming from {stopped}/checkpoint-2" in done.stderr
    assert figures(stopped) == figures(through)
    assert (stopped / "model/model.safetensors").read_bytes() == (through / "model/model.safetensors").read_bytes()
    text = run_forked_fine(
        *python("generate.py", "--model", through, "--prompt", "The government", "--max_new_tokens", 4)
    )
    assert "The government" in text.stdout


def test_a_run_keeps_its_parent_while_the_run_of_that_goes_on(parent: Path, sample_store: Path, tmp_path: Path) -> None:
    """It began from a checkpoint; the model that is exported later has other weights."""
    source, run_dir = shutil.copytree(parent, tmp_path / "source"), tmp_path / "run"
    exported = (source / "model").rename(tmp_path / "model")
    flags = ["--learning_rate", "1e-3", "--max_steps", 2, "--save_steps", 1, "--eval_strategy", "no"]
    flags += ["--export", "false"]
    continue_from(source, sample_store, run_dir, *flags, ranks=1)
    weights = load_file(exported / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, exported / "model.safetensors")
    exported.rename(source / "model")
    shutil.rmtree(run_dir / "checkpoint-2")
    done = continue_from(source, sample_store, run_dir, *flags, ranks=1)
    assert f"--weights {source}: is {source}/model now; {run_dir} began from {source}/checkpoint-6" in done.stderr
    assert f"resuming from {run_dir}/checkpoint-1" in done.stderr
    shutil.rmtree(source / "checkpoint-6")
    refused = try_to_continue(source, sample_store, run_dir, *flags, ranks=1)
    assert_one_error(refused, "--resume: initial_weights.model.safetensors differs", "the flag names another model now")


def test_bad_parents_are_one_line_before_anything_is_read(parent: Path, sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    other = shutil.copytree(parent / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    assert_one_error(try_to_continue(other, sample_store, run_dir), f"--weights {other}: is a mistral model")
    smaller = shutil.copytree(parent / "model", tmp_path / "smaller")
    tensors = load_file(smaller / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, smaller / "model.safetensors")
    assert_one_error(
        try_to_continue(smaller, sample_store, run_dir), f"--weights {smaller}: model.norm.weight is missing"
    )
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").touch()
    assert_one_error(try_to_continue(pickled, sample_store, run_dir), f"--weights {pickled}: has pickled weights")
    assert_one_error(
        try_to_continue(parent, sample_store, run_dir, "--model_overrides", "num_hidden_layers=1"),
        "--model_overrides num_hidden_layers: does not fit --weights",
    )
    assert not run_dir.exists()


def test_a_plan_needs_the_config_alone_and_model_says_that_its_weights_are_not_used(
    parent: Path, sample_store: Path, tmp_path: Path
) -> None:
    planned = run_forked_fine(
        *python("pretrain.py", "--weights", parent, "--dataset", sample_store, *FLAGS, "--dry_run")
    )
    assert str(parent / "model") in planned.stdout
    model = parent / "model"
    words = [PROJECT_DIR / "pretrain.py", "--model", model, "--dataset", sample_store, "--output_dir", tmp_path / "run"]
    words += [*FLAGS, "--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no", "--export", "false"]
    done = run_preloaded(1, words, {"PYTHONPATH": SEARCH_PATH})
    assert done.returncode == 0, done.output[-3000:]
    assert f"--model {model}: only its config is used" in done.stderr
    assert f"--weights {model}" in done.stderr
