"""tools.text_statistics as a user starts it: what stands in the training data is found there, with its line."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import PROJECT_DIR, assert_one_error, run, run_fine
from tests.rounding import loss_rounding

STATISTICS = [sys.executable, "-m", "tools.text_statistics"]
SAMPLE = PROJECT_DIR / "data/sample/news.jsonl"
STORIES = [json.loads(line)["text"] for line in SAMPLE.read_text("utf-8").splitlines()]
LINE = 7
SENTENCE = " " + STORIES[LINE - 1].split(". ")[2] + "."
OWN = " A purple xylophone quietly audits seventeen lighthouses, Zebulon objected, unless Wednesdays hum."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PROJECT_DIR / "data/sample/tokenizer")


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
    done = run_fine(*STATISTICS, samples, "--blocks", sample_store, "--output", output)
    found = json.loads(output.read_text())
    (row,) = found["copied_runs"]
    assert (row["sample"], row["file"], row["line"]) == (2, "data/sample/news.jsonl", LINE)
    num_tokens = len(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
    assert num_tokens - 1 <= row["num_tokens"] <= num_tokens + 2, "what is beside it may fit by chance"
    assert SENTENCE.strip(". ") in row["text"]
    share = row["num_tokens"] / (len(own["tokens"]) + len(planted["tokens"]))
    assert found["copied_share"] == pytest.approx(share), "nothing else is copied"
    assert (
        f"copied         {share:.1%} of the tokens; 1 of 2 continuations have a run of 8 tokens or more" in done.stdout
    )
    assert f"{row['num_tokens']} tokens of continuation 2, in data/sample/news.jsonl:{LINE}:" in done.stdout
    assert (found["num_continuations"], found["num_prompts"], found["eos_rate"]) == (2, 1, 0.5)
    assert found["mean_words"] == sum(len(line["text"].split()) for line in (own, planted)) / 2


@pytest.mark.launch
def test_perplexity_is_that_of_the_tokens_given_their_prompts(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, trained_run: Path
) -> None:
    lines = [line_of(tokenizer, SENTENCE), line_of(tokenizer, OWN), line_of(tokenizer, "")]
    samples, output = write_samples(tmp_path / "samples.jsonl", *lines), tmp_path / "figures.json"
    words = ["--model", trained_run, "--held_out", SAMPLE, "--output", output]
    done = run_fine(*STATISTICS, samples, *words)
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
    assert f"perplexity     {found['continuations']:,.2f} on continuations, {found['held_out']:,.2f} on held-out" in (
        done.stdout
    )


def test_a_mistake_is_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sample_store: Path) -> None:
    good = write_samples(tmp_path / "good.jsonl", line_of(tokenizer, OWN))
    old = write_samples(tmp_path / "old.jsonl", {"prompt": "a", "text": "b", "num_tokens": 1, "finish_reason": "eos"})
    other = write_samples(tmp_path / "other.jsonl", {**line_of(tokenizer, OWN), "tokens": [5, 6, 7]})
    empty = write_samples(tmp_path / "empty.jsonl")
    cases: list[tuple[list[object], str]] = [
        ([], "--samples: give a file that generate.py --output wrote"),
        (["nowhere.jsonl"], "--samples nowhere.jsonl: cannot be read"),
        ([empty], f"--samples {empty}: has no line"),
        ([old], f"--samples {old}:1: is no object with prompt, text, tokens, finish_reason"),
        ([good, "--held_out", "a.jsonl"], "--held_out: needs --model"),
        ([good, "--output", good], f"--output {good}: exists already"),
        ([good, "--blocks", tmp_path], f"--blocks {tmp_path}: not a block store"),
        ([other, "--blocks", sample_store], "does not give the text of continuation 1 from its tokens"),
    ]
    for words, part in cases:
        assert_one_error(run(*STATISTICS, *words), part)
