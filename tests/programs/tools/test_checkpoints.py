"""tools.checkpoints as a user starts it: which checkpoints are whole, and one as everybody's model."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from pretraining.errors import UserError
from pretraining.runs import verification
from pretraining.runs.checksums import COMPLETE_NAME, record_file, write_manifest
from pretraining.runs.export import from_checkpoint as checkpoint_export
from pretraining.runs.export.zero_shards import open_shards
from pretraining.runs.verification import checkpoint_problems
from tests.conftest import TINY_MODEL
from tests.programs.launching import run_forked, run_forked_fine, train
from tools.checkpoints import main

pytestmark = pytest.mark.launch

TOOL = [sys.executable, "-m", "tools.checkpoints"]


@pytest.fixture(scope="module")
def finished_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks in bf16, with what exports have gone wrong over: tied weights, and positions of another speed."""
    run_dir = tmp_path_factory.mktemp("tool") / "run"
    flags = ["--model_overrides", *TINY_MODEL, "tie_word_embeddings=true", "rope_theta=500000", "--bf16", "true"]
    train("2 ranks", sample_store, run_dir, *flags, "--max_steps", 2, "--save_steps", 1, "--eval_strategy", "no")
    return run_dir


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("exported") / "new" / "model"
    done = run_forked_fine(*TOOL, "export", finished_run / "checkpoint-2", model_dir)
    assert done.stdout == ""
    assert f"exported model: {model_dir} (bf16)" in done.stderr
    return model_dir


@pytest.mark.guarantee("A checkpoint exports to the weights of the run, bit by bit, without GPUs.")
def test_the_weights_are_those_of_the_checkpoint_to_the_bit(finished_run: Path, exported: Path) -> None:
    ours = load_file(exported / "model.safetensors")
    theirs = load_file(finished_run / "checkpoint-2/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert "lm_head.weight" not in ours
    for name, weight in theirs.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(ours[name], weight), name


def test_it_is_the_model_that_the_run_exports(finished_run: Path, exported: Path) -> None:
    model_dir = finished_run / "model"
    assert {path.name for path in exported.iterdir()} == {path.name for path in model_dir.iterdir()} - {"README.md"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in exported.iterdir())
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((exported / name).read_text()) == json.loads((model_dir / name).read_text()), name
    ids = torch.arange(1, 40)[None]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (exported, model_dir))
    assert torch.equal(ours, theirs)


def test_the_record_of_the_run_is_config_enough(finished_run: Path, exported: Path, tmp_path: Path) -> None:
    """In fp32, from the shards alone: the master weights."""
    checkpoint = tmp_path / "run/checkpoint-2"
    shutil.copytree(finished_run / "checkpoint-2", checkpoint)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        (checkpoint / name).unlink()
    complete(checkpoint)
    shutil.copy(finished_run / "run.json", checkpoint.parent)
    shutil.copytree(finished_run / "tokenizer", checkpoint.parent / "tokenizer")
    main(["export", str(checkpoint), str(tmp_path / "model"), "--dtype", "fp32"])
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "model", exported))
    assert config == {**expected, "dtype": "float32"}
    master = load_file(tmp_path / "model/model.safetensors")
    for name, weight in load_file(exported / "model.safetensors").items():
        assert torch.equal(master[name].bfloat16(), weight)
    assert any(not torch.equal(weight.bfloat16().float(), weight) for weight in master.values())


def test_a_run_in_fp32_is_exported_in_fp32(trained_run: Path, tmp_path: Path) -> None:
    """Without --dtype: the weights of the run's own exported model, to the bit."""
    model_dir = tmp_path / "model"
    main(["export", str(trained_run / "checkpoint-6"), str(model_dir)])
    assert json.loads((model_dir / "config.json").read_text())["dtype"] == "float32"
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (model_dir, trained_run / "model"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_large_model_is_in_several_files(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_export, "MAX_FILE_BYTES", 10_000)
    config, weights = open_shards(finished_run / "checkpoint-2")
    checkpoint_export.write_weights(tmp_path, weights, dtype=torch.bfloat16)
    config.save_pretrained(tmp_path)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name].contiguous().bfloat16()), name


def test_verify_says_which_checkpoints_are_whole(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["verify", str(finished_run)])
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in lines] == ["checkpoint-1", "checkpoint-2", "model"]
    assert all("  ok: " in line for line in lines)
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    state = run_dir / "checkpoint-1/trainer_state.json"
    state.write_text(state.read_text().replace("1", "2", 1))
    done = run_forked(*TOOL, "verify", run_dir)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if " s left" not in line] == []  # progress on a busy machine
    assert "trainer_state.json is damaged: its XXH3 is" in done.stdout.splitlines()[1]
    assert [line.split()[1:] for line in done.stdout.splitlines()[2:]] == [line.split()[1:] for line in lines[1:]]
    shard = next((run_dir / "checkpoint-2").rglob("*_optim_states.pt"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = "checkpoint is incomplete or damaged: "
    assert_refused(["export", run_dir / "checkpoint-2", tmp_path / "model"], damaged, "its XXH3 is")
    state.unlink()
    assert_refused(["export", run_dir / "checkpoint-1", tmp_path / "model"], f"{damaged}trainer_state.json")


def test_a_checkpoint_that_is_rotated_while_it_is_read_is_no_damage(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a run that trains: its oldest checkpoint goes when a new one is whole."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)

    def problems_of_one_that_goes(checkpoint: Path) -> list[str]:
        if checkpoint.name == "checkpoint-1":
            shutil.rmtree(checkpoint)
        return checkpoint_problems(checkpoint)

    monkeypatch.setattr(verification, "checkpoint_problems", problems_of_one_that_goes)
    main(["verify", str(run_dir)])
    names = [Path(line.split()[0]).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["checkpoint-2", "model"]


def complete(checkpoint: Path) -> None:
    """As if it had been saved as it is."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE_NAME]
    write_manifest(checkpoint, [record_file(checkpoint, path) for path in files], step=2, num_processes=2)


def assert_refused(words: list[object], *parts: str) -> None:
    with pytest.raises(UserError) as refused:
        main([str(word) for word in words])
    assert all(part in str(refused.value) for part in parts), refused.value


def test_shards_of_another_model_are_refused(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(finished_run / "checkpoint-2", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    complete(checkpoint)
    assert_refused(["export", checkpoint, tmp_path / "model"], "its shards are not those of the model in its config")
    (shard, *_) = checkpoint.glob("global_step*/*_optim_states.pt")
    shard.write_bytes(shard.read_bytes()[:1000])
    complete(checkpoint)
    assert_refused(["export", checkpoint, tmp_path / "model"], f"{shard}: cannot be read (")
    assert not list(tmp_path.glob("model*"))


def test_a_disk_without_room(finished_run: Path, small_disk: Path) -> None:
    words = ["export", finished_run / "checkpoint-2", small_disk / "model"]
    size = r"\d+(\.\d)? [kM]B"
    place = re.escape(f"--output_dir {small_disk}/model")
    with pytest.raises(UserError, match=f"{place}: the model takes {size}, the disk has {size} left; free space or "):
        main([str(word) for word in words])
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--command: pass verify or export"),
        (["verifi", "x"], "'verifi' is not one of verify, export (did you mean verify?)"),
        (["verify", "tests"], "--folder tests: has nothing to check; pass a block store, run folder"),
        (["export", "checkpoint-1"], "--output_dir: pass the folder of the exported model"),
        (["verify", "x", "y"], "--output_dir: pass the folder of the exported model; verify takes none"),
        (["export", "tests", "OUT", "--dtype", "fp8"], "'fp8' is not one of bf16, fp16, fp32"),
        (["export", "nowhere", "OUT"], "nowhere: checkpoint is incomplete or damaged: no such folder"),
    ],
)
def test_a_mistake_is_one_line(words: list[object], part: str) -> None:
    assert_refused(words, part)


def test_a_folder_that_is_there_is_not_written_over(finished_run: Path, exported: Path) -> None:
    words = ["export", finished_run / "checkpoint-2", exported]
    assert_refused(words, f"--output_dir {exported}: exists already; choose another folder")
