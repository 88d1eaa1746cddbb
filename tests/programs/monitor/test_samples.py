"""Samples while training: of processes that share blocks, that fail, that cannot be.

That samples change nothing and are there once is in test_task_scores.py, whose runs have both.
"""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.conftest import TINY_MODEL, assert_one_error
from tests.programs.launching import figures, records, train, try_to_train

pytestmark = pytest.mark.launch

FLAGS = ["--model_overrides", *TINY_MODEL, "attention_dropout=0.1", "--save_steps", 2, "--eval_steps", 3]
PROMPTS = ["The", "I wanna go to the council"]
BROKEN = "tests/programs/drivers/sampling_run.py"
SAMPLES = ["--sample_steps", 4, "--sample_tokens", 12, "--sample_prompts", *PROMPTS]


def samples(run_dir: Path) -> dict[int, list[dict[str, str]]]:
    """Those of each step, which must be there once."""
    events = [record for record in records(run_dir, "event") if record["event"] == "samples"]
    found = {event["step"]: event["samples"] for event in events}
    assert len(found) == len(events)
    assert all([sample["prompt"] for sample in made] == PROMPTS for made in found.values())
    return found


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model/model.safetensors").read_bytes()


@torch.no_grad()
def written_by(model_dir: Path, *, num_tokens: int) -> list[str]:
    """What the exported model writes, opened by transformers alone: each prompt by itself, whole at each token."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir)
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    starts = [tokenizer.decode(row) for row in rows]
    torch.manual_seed(42)
    for _ in range(num_tokens):
        scores = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
        for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.95)):
            scores = warper(None, scores)
        rows = [[*row, int(token)] for row, token in zip(rows, scores.softmax(-1).multinomial(1), strict=True)]
    texts = [tokenizer.decode(row) for row in rows]
    return [text[len(start) :].split(tokenizer.eos_token)[0] for text, start in zip(texts, starts, strict=True)]


# Of processes that do not share blocks test_samples_change_nothing_and_are_there_once holds the same.
@pytest.mark.long
def test_processes_that_share_blocks_and_tiles_sample_too(sample_store: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--sequence_parallel_size", 2, "--loss_tiles", 3, "--mlp_tiles", 2, "--document_masking"]
    flags += ["--gradient_checkpointing"]
    options = {"script": "tests/programs/drivers/sampling_run.py", "env": {"END_AFTER": "3"}}
    train("2 ranks", sample_store, tmp_path / "run", *flags, *SAMPLES, **options)
    train("2 ranks", sample_store, tmp_path / "plain", *flags)
    ended, whole = (sample["continuation"] for sample in samples(tmp_path / "run")[6])
    assert ended == written_by(tmp_path / "run/model", num_tokens=3)[0]  # EOS of one does not end the other
    assert whole == written_by(tmp_path / "run/model", num_tokens=12)[1]
    assert figures(tmp_path / "run") == figures(tmp_path / "plain")
    assert weights(tmp_path / "run") == weights(tmp_path / "plain")


def test_a_run_whose_samples_fail_on_one_process_ends(sample_store: Path, tmp_path: Path) -> None:
    """It does not hang."""
    flags, env = [*FLAGS, *SAMPLES, "--save_strategy", "no", "--eval_strategy", "no"], {"BROKEN_RANKS": "1"}
    flags += ["--sample_steps", 2]
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", *flags, env=env, script=BROKEN)
    assert done.returncode != 0
    assert "RuntimeError: no memory left" in done.stderr
    assert len(figures(tmp_path / "run")) == 1


def test_prompts_that_cannot_be_continued_are_refused(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("1 rank", sample_store, tmp_path / "a", *SAMPLES, "--sample_tokens", 127)
    assert_one_error(done, "--sample_tokens 127", "exceeds the model's 128 positions", "use 12")
    done = try_to_train("1 rank", sample_store, tmp_path / "b", *SAMPLES, "--sample_prompts", "The", "")
    assert_one_error(done, "--sample_prompts: one of them is empty")
    assert not list(tmp_path.glob("*/metrics.jsonl"))
