"""generate.py on whatever a run leaves behind, on files of prompts, and on what cannot be completed."""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonlines
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from generate import main as generate_main
from preprocess import main as preprocess
from pretraining.errors import UserError
from pretraining.evaluation.text_statistics import text_statistics
from pretraining.generation.generate import Completion
from pretraining.system.processes import descendants
from tests.conftest import PROJECT_DIR, Done, assert_one_error, python, wait_until
from tests.programs.launching import preloaded_for, run_forked, run_forked_fine, train
from tests.rounding import loss_rounding
from tools.evaluate import main as evaluate
from train_tokenizer import main as train_tokenizer

pytestmark = pytest.mark.launch
SAMPLED = ["--max_new_tokens", 30, "--temperature", 1.0, "--prompt", "The council"]  # 30 draws tell weights apart
PROMPTS = ["The council", "Scientists have found", "A", "In the morning the boats of the harbour", "Who?"]


@pytest.fixture(scope="module")
def finished_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with a checkpoint, in a folder named runs."""
    run_dir = tmp_path_factory.mktemp("generate") / "runs" / "tiny"
    train("2 ranks", sample_store, run_dir, "--save_steps", 6, "--eval_strategy", "no")
    return run_dir


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


def generate(*words: object) -> Done:
    """generate.py in this process, which has torch; a start takes seconds and proves nothing more."""
    stdout, log, errors = io.StringIO(), io.StringIO(), []
    handler, logger = logging.StreamHandler(log), logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(stdout):
            generate_main([str(word) for word in words])
    except UserError as error:
        errors = list(error.problems)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return Done(2 if errors else 0, stdout.getvalue(), log.getvalue() + "".join(f"error: {one}\n" for one in errors))


def sample(*words: object) -> str:
    done = generate(*SAMPLED, *words)
    assert done.returncode == 0, done.output
    return done.stdout


def lines_of(output: Path) -> list[dict]:
    with jsonlines.open(output) as reader:
        return list(reader)


def written(output: Path, *words: object) -> list[dict]:
    done = generate("--output", output, "--max_new_tokens", 12, *words)
    assert done.returncode == 0, done.output
    assert done.stdout == ""
    return lines_of(output)


def bare_shards(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint and the record of its run, without the exported weights."""
    copy = folder / checkpoint.name
    shutil.copytree(checkpoint, copy)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        (copy / name).unlink()
    shutil.copy(checkpoint.parent / "run.json", folder)
    shutil.copytree(checkpoint.parent / "tokenizer", folder / "tokenizer")
    return copy


@pytest.mark.guarantee("Every source of a model gives the same text.")
def test_every_source_gives_the_same_text(finished_run: Path, tmp_path: Path) -> None:
    expected = sample("--model", finished_run / "model")
    assert expected.startswith("The council")
    assert sample("--model", finished_run) == expected
    assert sample("--model", finished_run / "checkpoint-6") == expected
    assert sample("--model", bare_shards(finished_run / "checkpoint-6", tmp_path)) == expected


@pytest.mark.parametrize("ranks", [pytest.param("1 rank", marks=pytest.mark.long), "3 ranks"])
@pytest.mark.guarantee("Shards of 1, 2 and 3 processes give the text of the export.")
def test_shards_of_any_number_of_ranks_are_the_exported_model(ranks: str, sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = ["--global_batch_tokens", "384", "--max_steps", 1, "--save_steps", 1, "--bf16", "true"]  # rounds its export
    train(ranks, sample_store, run_dir, *flags, "--eval_strategy", "no")
    expected = sample("--model", run_dir / "model")
    shards = bare_shards(run_dir / "checkpoint-1", tmp_path)
    assert sample("--model", shards) == expected
    shutil.copy(run_dir / "checkpoint-1/config.json", shards)  # which says fp32
    assert sample("--model", shards) == expected


def test_a_prompt_may_come_first(finished_run: Path) -> None:
    flags = ["--model", finished_run, "--max_new_tokens", 4]
    first, named = generate("The council", *flags), generate("--prompt", "The council", *flags)
    assert (first.returncode, named.returncode) == (0, 0)
    assert first.stdout == named.stdout
    assert first.stdout.startswith("The council")


def test_a_run_without_export_gives_its_newest_whole_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    shutil.rmtree(run_dir / "model")
    shutil.copytree(run_dir / "checkpoint-6", run_dir / "checkpoint-9")
    (run_dir / "checkpoint-9/complete.json").unlink()  # as after a kill during the save
    done = generate(*SAMPLED, "--model", run_dir)
    assert "checkpoint-6 (newest complete checkpoint)" in done.stderr
    done = generate(*SAMPLED, "--model", run_dir / "checkpoint-9")
    assert_one_error(done, "checkpoint-9: checkpoint is incomplete", "did not finish", "use ", "checkpoint-6")
    shard = next((run_dir / "checkpoint-6").glob("global_step*/*_optim_states.pt"))
    shard.unlink()
    (run_dir / "checkpoint-6/model.safetensors").unlink()
    assert_one_error(generate(*SAMPLED, "--model", run_dir / "checkpoint-6"), "1 of 2 shards are present")


def test_without_flags_the_newest_run_in_runs_continues_the_default_prompt_or_what_is_piped(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_run.parents[1]
    words = python("generate.py", "--max_new_tokens", 5)
    done = run_forked_fine(*words, cwd=folder, stdin="The council\n\nWho?\n")
    first, second, _ = done.stdout.split("\n\n")
    assert first.startswith("The council")
    assert second.startswith("Who?")
    assert "runs/tiny/model (exported model)" in done.stderr
    assert "loaded in" in done.stderr
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", None)  # nothing is piped
    assert generate("--max_new_tokens", 5).stdout.startswith("I wanna go")


def test_typed_prompts_are_continued_as_given_ones(finished_run: Path) -> None:
    flags = ["--model", finished_run, "--max_new_tokens", 8]
    typed = f"The council\n{'A ' * 200}\nWho?\n\n"
    done = run_forked_fine(*python("generate.py", *flags, "--interactive"), stdin=typed)
    expected = generate(*flags, "--prompt", "The council", "Who?").stdout.split("\n\n")
    assert expected[0] in done.stdout
    assert "> Who?" in done.stdout
    assert len(done.errors) == 1, done.errors
    assert "positions" in done.errors[0]


@pytest.mark.guarantee("The same seed gives the same text in any batch.")
def test_a_text_depends_on_seed_prompt_and_place_alone(finished_run: Path, prompt_file: Path, tmp_path: Path) -> None:
    flags = ["--model", finished_run, "--num_samples", 3, "--no_repeat_ngram_size", 3]
    many = [*flags, "--prompt_file", prompt_file]
    one = written(tmp_path / "1.jsonl", *many, "--batch_size", 1)
    keys = [(line["prompt"], line["prompt_number"], line["sample_number"]) for line in one]
    assert keys == [(prompt, number, place) for number, prompt in enumerate(PROMPTS) for place in range(3)]
    assert len({line["text"] for line in one}) == len(one)
    assert_same(written(tmp_path / "2.jsonl", *many, "--batch_size", 2), one)
    assert_same(written(tmp_path / "32.jsonl", *many), one)
    assert_same(written(tmp_path / "alone.jsonl", *flags, "--prompt", PROMPTS[0]), one[:3])
    assert generate(*many, "--max_new_tokens", 12).stdout == "".join(
        f"{line['prompt']}{line['text']}\n\n" for line in one
    )
    otherwise = written(tmp_path / "seed.jsonl", *many, "--seed", 43)
    assert all(line["tokens"] != other["tokens"] for line, other in zip(one, otherwise, strict=True))


def test_statistics_are_logged_after_the_text_and_of_all_lines_of_a_file(
    finished_run: Path, sample_store: Path, prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--model", finished_run, "--prompt_file", prompt_file, "--max_new_tokens", 12, "--stats"]
    output = tmp_path / "texts.jsonl"
    with (PROJECT_DIR / "data/sample/news.jsonl").open() as news:
        reference = tmp_path / "news.jsonl"
        reference.write_text("".join(next(news) for _ in range(8)))
    compared = ["--reference_files", reference, "--blocks", sample_store]
    to_file = generate(*flags, *compared, "--output", output)
    lines = lines_of(output)
    done = generate(*flags)
    assert done.stdout == "".join(f"{line['prompt']}{line['text']}\n\n" for line in lines)
    for line in text_statistics([Completion(**line) for line in lines]).lines():
        assert line in done.stderr
        assert line in to_file.stderr
    perplexity = r"perplexity     [\d.,]+ on completions"
    assert re.search(perplexity + "$", done.stderr, re.MULTILINE)
    assert re.search(perplexity + r", [\d.,]+ on reference files$", to_file.stderr, re.MULTILINE)
    assert re.search(r"copied         [\d.]+% of the tokens; 0 of 5 completions have a run of 8", to_file.stderr)
    evaluate([str(word) for word in (finished_run, "--completions", output, *compared)])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6
    for line in shown:
        assert line in to_file.stderr


def test_what_texts_are_compared_with_is_looked_at_first(finished_run: Path, tmp_path: Path) -> None:
    flags = ["--model", finished_run, "--prompt", "The council", "--max_new_tokens", 1]
    texts = tmp_path / "texts.jsonl"
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    tokenizer, foreign, untrained = tmp_path / "tokenizer", tmp_path / "foreign", tmp_path / "untrained"
    train_tokenizer(["--vocab_size", "500", "--output_dir", str(tokenizer)])
    preprocess(["--block_length", "64", "--tokenizer", str(tokenizer), "--output_dir", str(foreign)])
    preprocess(["--block_length", "64", "--split", "0,0,1", "--output_dir", str(untrained)])
    cases = {
        ("--reference_files", empty): "--reference_files, --blocks: have no effect without --stats",
        ("--stats", "--reference_files", "nowhere.jsonl"): "--reference_files nowhere.jsonl: ",
        (
            "--stats",
            "--reference_files",
            empty,
        ): "--reference_files: no line is a document (1 empty_text); pass other files, with",
        ("--stats", "--blocks", tmp_path): f"--blocks {tmp_path}: not a block store",
        ("--stats", "--blocks", foreign): f"--blocks {foreign}: were made with another tokenizer",
        ("--stats", "--blocks", untrained): f"--blocks {untrained}: has no block to train on",
    }
    for words, part in cases.items():
        assert_one_error(generate(*flags, "--output", texts, *words), part)
    assert not list(tmp_path.glob("texts*"))


def assert_same(lines: list[dict], expected: list[dict]) -> None:
    """Equal, but for the order of sums in the logarithms of their probabilities, which are losses."""
    for line, other in zip(lines, expected, strict=True):
        assert line == {**other, "log_probability": pytest.approx(other["log_probability"], rel=loss_rounding(128))}


@pytest.mark.guarantee("Greedy ids and probabilities are those of transformers.")
def test_greedy_ids_and_probabilities_are_those_of_transformers(
    finished_run: Path, prompt_file: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished_run / "model", dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(finished_run / "model")
    flags = ["--model", finished_run, "--prompt_file", prompt_file]
    for line in written(tmp_path / "greedy.jsonl", *flags, "--greedy", "--repetition_penalty", 1.3):
        inputs = tokenizer(line["prompt"], return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, repetition_penalty=1.3, pad_token_id=0, eos_token_id=2
        )
        expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
        assert line["tokens"] == (expected[:-1] if line["finish_reason"] == "eos" else expected)
    for line in written(tmp_path / "sampled.jsonl", *flags):
        assert_probability(line, model, tokenizer, ending=[2] if line["finish_reason"] == "eos" else [])
    for line in written(tmp_path / "beams.jsonl", *flags, "--num_beams", 3, "--num_samples", 2):
        assert_probability(line, model, tokenizer, ending=[2] if line["finish_reason"] == "eos" else [])


def assert_probability(
    line: dict, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, ending: list[int]
) -> None:
    prompt = tokenizer(line["prompt"])["input_ids"]
    ids = torch.tensor([prompt + line["tokens"] + ending])
    with torch.no_grad():
        chances = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(prompt) - 1 :]
    assert line["log_probability"] == pytest.approx(float(chances.sum()), rel=loss_rounding(128))
    assert line["num_tokens"] == len(line["tokens"])


def test_a_text_ends_at_eos_or_before_a_stop_text(finished_run: Path, prompt_file: Path, tmp_path: Path) -> None:
    flags = ["--prompt_file", prompt_file, "--num_samples", 2]
    free = written(tmp_path / "free.jsonl", "--model", finished_run, *flags)
    stop = free[0]["text"][5:8]
    assert stop.strip()
    stopped = written(tmp_path / "stop.jsonl", "--model", finished_run, *flags, "--stop", stop, "no such text")
    assert [line["text"] for line in stopped] == [line["text"].partition(stop)[0] for line in free]
    for line, whole in zip(stopped, free, strict=True):
        assert line["finish_reason"] == ("stop" if stop in whole["text"] else whole["finish_reason"])
        assert line["tokens"] == whole["tokens"][: line["num_tokens"]]

    model_dir = tmp_path / "model"
    shutil.copytree(finished_run / "model", model_dir)
    end = free[0]["tokens"][3]
    config = json.loads((model_dir / "config.json").read_text()) | {"eos_token_id": [2, end]}
    (model_dir / "config.json").write_text(json.dumps(config))
    ended = written(tmp_path / "eos.jsonl", "--model", model_dir, *flags)
    assert ended[0]["finish_reason"] == "eos"
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    for line, whole in zip(ended, free, strict=True):
        place = whole["tokens"].index(end) if end in whole["tokens"] else None
        assert line["tokens"] == whole["tokens"][:place]
        endings = {"eos": [2] if place is None else [end]}
        assert_probability(line, model, tokenizer, ending=endings.get(line["finish_reason"], []))


@pytest.mark.guarantee("A killed `--output` resumes to what it would have been.")
def test_a_killed_output_is_resumed_to_the_same_completions(
    finished_run: Path, prompt_file: Path, tmp_path: Path
) -> None:
    flags: list[object] = ["--model", finished_run, "--prompt_file", prompt_file, "--num_samples", 30]
    flags += ["--max_new_tokens", 12]
    whole = written(tmp_path / "whole.jsonl", *flags)
    output, partial = tmp_path / "killed.jsonl", tmp_path / "killed.jsonl.partial"
    command = python("generate.py", *flags, "--output", output, "--batch_size", 4)
    server = preloaded_for({})
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run_forked, *command)
        wait_until(lambda: running.done() or (partial.exists() and partial.read_bytes().count(b"\n") > 20))
        for process in descendants(server.pid):
            os.kill(process.pid, signal.SIGKILL)
        assert running.result().returncode == -signal.SIGKILL
    finished = partial.read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    assert 20 <= len(finished) < len(whole)
    partial.write_bytes(partial.read_bytes().rpartition(b"\n")[0] + b'\n{"prompt": "The cou')
    assert not output.exists()

    done = generate(*flags, "--output", output, "--seed", 7)
    assert_one_error(done, f"--output {output}:", "another command", "seed was 42", "choose another one")
    again = written(output, *flags)
    assert not partial.exists()
    for line in finished:  # kept as they were, to the byte
        assert line in output.read_bytes().splitlines()
    assert_same(again, whole)
    assert_one_error(generate(*flags, "--output", output), "exists already; choose another file")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model", "nowhere/none"], ["--model nowhere/none: cannot be loaded"]),
        (["--model", "./no/such/folder"], ["is neither a folder nor a Hub id"]),
        (["--model", PROJECT_DIR / "recipes"], ["is not a run, exported model or checkpoint"]),
        (["--prompt_file", "missing.txt"], ["--prompt_file missing.txt: cannot be read", "check the path"]),
        (["--prompt_file", PROJECT_DIR / "data/sample/news.jsonl"], ["news.jsonl:1: ", "field prompt"]),
        (["--prompt", " "], ["--prompt: is empty"]),
        (["--temperature", "0"], ["--temperature 0: must be in [1e-06, 1e6]; --greedy draws nothing"]),
        (["--top_p", "1.5"], ["--top_p 1.5"]),
        (["--min_p", "-1"], ["--min_p -1: must be in [0, 1]"]),
        (["--num_beams", "2", "--num_samples", "3"], ["--num_samples 3: is more than --num_beams 2"]),
        (["--output", PROJECT_DIR / "README.md"], ["exists already; choose another file"]),
        (["--output", "no/folder/x.jsonl"], ["the folder no/folder does not exist"]),
    ],
)
def test_bad_input_is_one_line(flags: list[object], parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = [] if {"--prompt", "--prompt_file"} & set(map(str, flags)) else ["--prompt", "The council"]
    assert_one_error(generate(*given, *flags), *parts)


def test_models_that_cannot_generate_are_reported_in_one_line(finished_run: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(finished_run / "model", tmp_path / name)

    def error(model_dir: Path, *parts: str) -> None:
        assert_one_error(generate(*SAMPLED, "--model", model_dir), *parts)

    (copy("no_tokenizer") / "tokenizer.json").unlink()
    error(tmp_path / "no_tokenizer", "has no tokenizer.json; copy the tokenizer")
    weights = copy("pickled") / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    error(tmp_path / "pickled", "pickled weights (pytorch_model.bin), which can run code", "*.safetensors")
    for name, fields, parts in [
        (
            "own_code",
            {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
            ["config.json: asks for custom code (auto_map)", "is not run"],
        ),
        ("mistral", {"model_type": "mistral"}, ["is a mistral model"]),
        (
            "large",
            {"num_hidden_layers": 40, "hidden_size": 8192, "intermediate_size": 2**17},
            ["its weights take", "GB free", "use "],
        ),
    ]:
        config = json.loads((copy(name) / "config.json").read_text()) | fields
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        error(tmp_path / name, *parts)
    (copy("cut") / "model.safetensors").write_bytes(b"\x00" * 100)
    error(tmp_path / "cut", "cannot be read")


def test_shards_that_would_run_something_are_not_opened(finished_run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/was_here",)

    checkpoint = bare_shards(finished_run / "checkpoint-6", tmp_path)
    (checkpoint / "complete.json").unlink()
    for record in (tmp_path / "run.json", checkpoint / "run.json"):
        record.unlink()  # a folder of somebody else
    shutil.copy(finished_run / "checkpoint-6/config.json", checkpoint)
    shard = next(checkpoint.glob("global_step*/*rank_1*_optim_states.pt"))
    torch.save({**torch.load(shard, weights_only=False), "more": Evil()}, shard)
    assert_one_error(
        generate(*SAMPLED, "--model", checkpoint), "_optim_states.pt: its pickle names", "system", "not loaded"
    )
    assert not (tmp_path / "was_here").exists()


def test_no_run_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_error(generate("--prompt", "x"), "runs/ has no run yet; train one")


def test_a_prompt_longer_than_the_positions(finished_run: Path) -> None:
    done = generate("--model", finished_run, "--max_new_tokens", 500, "--prompt", "The council")
    assert_one_error(done, "--max_new_tokens 500", "128 positions", "or less, or a shorter prompt")
    done = generate("--model", finished_run, "--prompt", "council " * 300)
    assert_one_error(done, "fills the model's 128 positions; shorten it")
