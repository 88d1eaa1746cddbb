"""generate.py on whatever a run leaves behind, and on the Hub."""

import json
import shutil
from pathlib import Path

import jsonlines
import pytest

from tests.conftest import PROJECT_DIR, assert_one_error, python, run, run_fine
from tests.hub import local_hub
from tests.launch.launching import train

pytestmark = pytest.mark.launch
SAMPLED = ["--max_new_tokens", 30, "--temperature", 1.0, "--prompt", "The council"]  # 30 draws tell weights apart


@pytest.fixture(scope="module")
def finished_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with a checkpoint, in a folder named runs."""
    run_dir = tmp_path_factory.mktemp("generate") / "runs" / "tiny"
    train("2 ranks", sample_store, run_dir, "--save_steps", 6, "--eval_strategy", "no")
    return run_dir


def sample(*words: object, **options: object) -> str:
    return run_fine(*python("generate.py", *SAMPLED, *words), **options).stdout


def test_every_source_gives_the_same_text(finished_run: Path, tmp_path: Path) -> None:
    expected = sample("--model", finished_run / "model")
    assert expected.startswith("The council")
    assert sample("--model", finished_run) == expected
    assert sample("--model", finished_run / "checkpoint-6") == expected

    only_shards = tmp_path / "only_shards" / "checkpoint-6"
    shutil.copytree(finished_run / "checkpoint-6", only_shards)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        (only_shards / name).unlink()
    shutil.copy(finished_run / "run.json", only_shards.parent)
    shutil.copytree(finished_run / "tokenizer", only_shards.parent / "tokenizer")
    assert sample("--model", only_shards) == expected


def test_without_flags_the_newest_run_in_runs_continues_the_default_prompt(finished_run: Path) -> None:
    done = run_fine(*python("generate.py", "--max_new_tokens", 5), cwd=finished_run.parents[1])
    assert done.stdout.startswith("I wanna go")
    assert "runs/tiny/model" in done.stderr


def test_a_run_without_export_gives_its_newest_whole_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    shutil.rmtree(run_dir / "model")
    shutil.copytree(run_dir / "checkpoint-6", run_dir / "checkpoint-9")
    (run_dir / "checkpoint-9/trainer_state.json").unlink()  # as after a kill during the save
    done = run_fine(*python("generate.py", *SAMPLED, "--model", run_dir))
    assert "checkpoint-6" in done.stderr


def test_a_model_and_its_tokenizer_come_from_the_hub(finished_run: Path, tmp_path: Path) -> None:
    repositories = {"someone/tiny": finished_run / "model"}
    with local_hub(repositories, tmp_path / "cache") as env:
        assert sample("--model", "someone/tiny", env=env) == sample("--model", finished_run)
        store = tmp_path / "blocks"
        run_fine(*python("preprocess.py", "--tokenizer", "someone/tiny", "--output_dir", store), env=env)
        done = run(*python("generate.py", "--model", "someone/nothing"), env=env)
    assert json.loads((store / "manifest.json").read_text())["origin"]["tokenizer"]["name"] == "someone/tiny"
    assert_one_error(done, "--model someone/nothing: cannot be loaded")


def test_samples_go_to_a_file_and_the_seed_decides_them(finished_run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The council\nScientists have\n")
    texts = []
    for number, seed in enumerate((1, 1, 2)):
        output = tmp_path / f"{number}.jsonl"
        flags = ["--prompt_file", prompts, "--num_samples", 2, "--seed", seed, "--max_new_tokens", 8]
        done = run_fine(*python("generate.py", "--model", finished_run, "--output", output, *flags))
        assert done.stdout == ""
        with jsonlines.open(output) as reader:
            lines = list(reader)
        assert [line["prompt"] for line in lines] == ["The council"] * 2 + ["Scientists have"] * 2
        assert all(line["finish_reason"] in ("eos", "length") and line["num_tokens"] <= 8 for line in lines)
        texts.append([line["text"] for line in lines])
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model", "nowhere/none"], ["--model nowhere/none: cannot be loaded"]),
        (["--model", PROJECT_DIR / "recipes"], ["has no tokenizer.json"]),
        (["--prompt_file", "missing.txt"], ["--prompt_file missing.txt: cannot be read", "check the path"]),
        (["--prompt", ""], ["--prompt: is empty"]),
        (["--temperature", "0"], ["--temperature 0.0: give more than 0, or --greedy"]),
        (["--top_p", "1.5"], ["--top_p 1.5"]),
        (["--output", PROJECT_DIR / "README.md"], ["exists already; choose another file"]),
    ],
)
def test_bad_input_is_one_line(flags: list[object], parts: list[str]) -> None:
    assert_one_error(run(*python("generate.py", *flags), env={"HF_HUB_OFFLINE": "1"}), *parts)


def test_no_run_yet(tmp_path: Path) -> None:
    assert_one_error(run(*python("generate.py"), cwd=tmp_path), "there is no run in runs/ yet; train one")


def test_a_prompt_longer_than_the_positions(finished_run: Path) -> None:
    done = run(*python("generate.py", "--model", finished_run, "--max_new_tokens", 500))
    assert_one_error(done, "--max_new_tokens 500", "128 positions", "or less, or a shorter prompt")
