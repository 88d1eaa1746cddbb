"""tools.evaluate on completions: statistics of files, text found in the training data, and models side by side."""

import json
import math
import sys
import weakref
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from generate import main as generate
from pretraining.errors import UserError
from pretraining.generation import load_model
from pretraining.runs.model_source import ModelSource
from tests.conftest import PROJECT_DIR
from tests.programs.launching import run_forked_fine
from tests.rounding import loss_rounding
from tools.evaluate import main

EVALUATE = [sys.executable, "-m", "tools.evaluate"]
SAMPLE = PROJECT_DIR / "data/sample/news.jsonl"
STORIES = [json.loads(line)["text"] for line in SAMPLE.read_text("utf-8").splitlines()]
NUM_HELD_OUT = 12
LINE = 7
SENTENCE = " " + STORIES[LINE - 1].split(". ")[2] + "."
OWN = " A purple xylophone quietly audits seventeen lighthouses, Zebulon objected, unless Wednesdays hum."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the sample's stories, whose evaluation takes no time."""
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)[:NUM_HELD_OUT]
    path = tmp_path_factory.mktemp("held_out") / "news.jsonl"
    path.write_text("".join(lines), "utf-8")
    return path


def line_of(tokenizer: PreTrainedTokenizerFast, text: str, *, finish_reason: str = "length") -> dict:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "prompt": "The council",
        "text": text,
        "tokens": ids,
        "num_tokens": len(ids),
        "finish_reason": finish_reason,
    }


def write_samples(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_a_sentence_of_the_training_data_is_found_with_its_line(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sample_store: Path
) -> None:
    planted, own = line_of(tokenizer, OWN + SENTENCE + OWN, finish_reason="eos"), line_of(tokenizer, OWN)
    samples, output = write_samples(tmp_path / "samples.jsonl", own, planted), tmp_path / "figures.json"
    done = run_forked_fine(*EVALUATE, "--completions", samples, "--blocks", sample_store, "--output", output)
    found = json.loads(output.read_text())
    (row,) = found["copied_runs"]
    assert (row["sample"], row["file"], row["line"]) == (2, "data/sample/news.jsonl", LINE)
    num_tokens = len(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
    assert num_tokens - 1 <= row["num_tokens"] <= num_tokens + 2, "what is beside it may fit by chance"
    assert SENTENCE.strip(". ") in row["text"]
    share = row["num_tokens"] / (len(own["tokens"]) + len(planted["tokens"]))
    assert found["copied_share"] == pytest.approx(share), "nothing else is copied"
    assert f"copied         {share:.1%} of the tokens; 1 of 2 completions have a run of 8 tokens or more" in done.stdout
    assert f"{row['num_tokens']} tokens of completion 2, in data/sample/news.jsonl:{LINE}:" in done.stdout
    assert (found["num_continuations"], found["num_prompts"], found["eos_rate"]) == (2, 1, 0.5)
    assert found["mean_words"] == sum(len(line["text"].split()) for line in (own, planted)) / 2


@pytest.mark.launch
def test_perplexity_is_that_of_the_tokens_given_their_prompts(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    trained_run: Path,
    held_out: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    lines = [line_of(tokenizer, SENTENCE), line_of(tokenizer, OWN), line_of(tokenizer, "")]
    samples, output = write_samples(tmp_path / "samples.jsonl", *lines), tmp_path / "figures.json"
    words = [
        str(trained_run),
        "--completions",
        str(samples),
        "--reference_files",
        str(held_out),
        "--output",
        str(output),
    ]
    main(words)
    model = AutoModelForCausalLM.from_pretrained(trained_run / "model").eval()
    losses = []
    for line in lines:
        given = tokenizer(line["prompt"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([given + line["tokens"]])).logits[0].log_softmax(dim=-1)
        losses += [-logits[len(given) - 1 + place, token].item() for place, token in enumerate(line["tokens"])]
    found = json.loads(output.read_text())["perplexity"]
    mean = sum(losses) / len(losses)
    assert found["continuations"] == pytest.approx(math.exp(mean), rel=mean * loss_rounding())
    shown = f"perplexity     {found['continuations']:,.2f} on completions, {found['held_out']:,.2f} on reference files"
    assert shown in capsys.readouterr().out


def test_a_mistake_is_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sample_store: Path) -> None:
    good = write_samples(tmp_path / "good.jsonl", line_of(tokenizer, OWN))
    old = write_samples(tmp_path / "old.jsonl", {"prompt": "a", "text": "b", "num_tokens": 1, "finish_reason": "eos"})
    other = write_samples(tmp_path / "other.jsonl", {**line_of(tokenizer, OWN), "tokens": [5, 6, 7]})
    empty = write_samples(tmp_path / "empty.jsonl")
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        ([empty], f"--completions {empty}: has no line"),
        ([old], f"--completions {old}:1: is not an object with prompt, text, tokens, finish_reason"),
        ([good, "--output", good], f"--output {good}: exists already"),
        ([good, "--blocks", tmp_path], f"--blocks {tmp_path}: not a block store"),
        ([other, "--blocks", sample_store], "does not give the text of completion 1 from its tokens"),
    ]
    for words, part in cases:
        with pytest.raises(UserError) as caught:
            main(["--completions", *map(str, words)])
        (problem,) = caught.value.problems
        assert part in problem
        assert "\n" not in problem


@pytest.mark.launch
def test_each_checkpoint_writes_what_generate_writes(
    trained_run: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "found.json"
    words = [trained_run, "--all_checkpoints", "--data_files", held_out, "--prompts", "The council", "Scientists have"]
    main([str(word) for word in (*words, "--max_new_tokens", 8, "--seed", 3, "--output", output)])
    heading, first, second, *rest = capsys.readouterr().out.splitlines()
    assert heading.split() == ["model", "documents", "tokens", "loss", "perplexity", "accuracy", "bits/byte"]
    assert [line.split()[0] for line in (first, second)] == ["checkpoint-3", "checkpoint-6"]
    assert float(second.split()[3]) < float(first.split()[3]), "it has learned something"
    for line, name in zip(rest, ("checkpoint-3", "checkpoint-6"), strict=False):
        assert line.startswith(name)
        assert [word for word in line.split() if "-" in word[1:]][1:] == [
            f"{kind}-{n}" for kind in ("rep", "distinct") for n in (1, 2, 3, 4)
        ]
    words = ["--prompt", "The council", "Scientists have", "--max_new_tokens", 8, "--seed", 3]
    generate(["--model", str(trained_run / "checkpoint-3"), *map(str, words)])
    written = capsys.readouterr().out.split("\n\n")
    found = json.loads(output.read_text())["models"]
    assert [one["model"] for one in found] == [str(trained_run / f"checkpoint-{step}") for step in (3, 6)]
    assert found[0]["total"]["num_documents"] == NUM_HELD_OUT
    assert [one["prompt"] + one["text"] for one in found[0]["completions"]] == written[:2]
    expected = " ".join(written[0].removeprefix("The council").split())
    assert f"checkpoint-3 {expected}" in rest


def test_a_model_is_passed_once(trained_run: Path) -> None:
    with pytest.raises(UserError, match="is passed twice; remove one"):
        main([str(trained_run), str(trained_run), "--prompts", "x"])


@pytest.mark.launch
def test_one_model_at_a_time_is_in_memory(trained_run: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices of accelerate too, whose hooks refer to the layers that refer to them."""
    loaded: list[weakref.ReferenceType[torch.Tensor]] = []
    load = load_model.load_model

    def load_alone(source: ModelSource) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        assert [weight() for weight in loaded] == [None] * len(loaded), "an earlier model is still in memory"
        model, tokenizer = load(source)
        loaded.append(weakref.ref(model.get_input_embeddings().weight))
        add_hook_to_module(model.model, ModelHook())
        return model, tokenizer

    monkeypatch.setattr(load_model, "load_model", load_alone)
    words = [str(trained_run), "--all_checkpoints", "--data_files", str(held_out), "--prompts", "x"]
    main([*words, "--max_new_tokens", "2"])
    assert len(loaded) == 2
