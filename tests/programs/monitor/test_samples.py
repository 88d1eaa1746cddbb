"""Samples while training: they change nothing in the run, and are there once, whatever happens to it."""

import shutil
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


@pytest.fixture(scope="module")
def plain_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without samples."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    train("2 ranks", sample_store, run_dir, *FLAGS)
    return run_dir


@pytest.mark.guarantee(
    "Samples change nothing in a run, appear once after a resume, and are what the exported model writes."
)
def test_samples_change_nothing_and_are_there_once(sample_store: Path, plain_run: Path, tmp_path: Path) -> None:
    """In a run with dropout, whose random state shows in every loss; nor do they after a resume."""
    run_dir = tmp_path / "run"
    done = train("2 ranks", sample_store, run_dir, *FLAGS, *SAMPLES)
    made = samples(run_dir)
    assert list(made) == [4, 6]
    assert made[4] != made[6]
    assert all(sample["continuation"] for row in made.values() for sample in row)
    assert done.stderr.count('  sample  "The"') == 2
    assert figures(run_dir) == figures(plain_run)
    assert weights(run_dir) == weights(plain_run)
    tensorboard = b"".join(path.read_bytes() for path in run_dir.glob("tensorboard/events*"))
    assert b"sample/I wanna go to the council" in tensorboard
    assert [sample["continuation"] for sample in made[6]] == written_by(run_dir / "model", num_tokens=12)

    for name in ("checkpoint-6", "model"):
        shutil.rmtree(run_dir / name)
    train("2 ranks", sample_store, run_dir, *FLAGS, *SAMPLES)
    assert samples(run_dir) == made
    assert figures(run_dir) == figures(plain_run)
    assert weights(run_dir) == weights(plain_run)


# Long: of processes that do not share blocks test_samples_change_nothing_and_are_there_once holds the same.
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


@pytest.mark.long  # of tasks: test_tasks_that_fail_end_no_run
def test_samples_that_fail_end_no_run(sample_store: Path, plain_run: Path, tmp_path: Path) -> None:
    """Where all processes fail alike, in the midst of a forward."""
    env = {"BROKEN_RANKS": "0 1"}
    done = train("2 ranks", sample_store, tmp_path / "all", *FLAGS, *SAMPLES, env=env, script=BROKEN)
    assert "step 4: sampling failed (no memory left) and is disabled; training continues" in done.stderr
    assert samples(tmp_path / "all") == {}
    assert figures(tmp_path / "all") == figures(plain_run)
    assert weights(tmp_path / "all") == weights(plain_run)


def test_a_run_whose_samples_fail_on_one_process_ends(sample_store: Path, tmp_path: Path) -> None:
    """It does not hang."""
    flags, env = [*FLAGS, *SAMPLES, "--save_strategy", "no", "--eval_strategy", "no"], {"BROKEN_RANKS": "1"}
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", *flags, env=env, script=BROKEN)
    assert done.returncode != 0
    assert "RuntimeError: no memory left" in done.stderr
    assert len(figures(tmp_path / "run")) == 3


def test_prompts_that_cannot_be_continued_are_refused(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("2 ranks", sample_store, tmp_path / "a", *SAMPLES, "--sample_tokens", 127)
    assert_one_error(done, "--sample_tokens 127", "exceeds the model's 128 positions", "use 12")
    done = try_to_train("2 ranks", sample_store, tmp_path / "b", *SAMPLES, "--sample_prompts", "The", "")
    assert_one_error(done, "--sample_prompts: one of them is empty")
    assert not list(tmp_path.glob("*/metrics.jsonl"))
