"""Checks before torch is imported that need neither blocks nor a run folder."""

import re
from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.data.mixture import load_mixture
from pretraining.errors import UserError
from pretraining.training.config.early_checks import check_inputs, check_profiled_steps
from pretraining.training.dry_run.dry_run import print_plan

QUICKSTART = ["--model", "quickstart", "--dataset", "nowhere", "--block_length", "64", "--global_batch_tokens", "512"]


def test_steps_after_the_end_are_rejected() -> None:
    for words in ([], ["--profile", "10"], ["--profile", "9:2"]):
        check_profiled_steps(parse_pretrain_arguments("", words), 10)
    for text in ("11", "9:3"):
        with pytest.raises(UserError, match=f"--profile {text}: the run ends after step 10"):
            check_profiled_steps(parse_pretrain_arguments("", ["--profile", text]), 10)
    check_profiled_steps(parse_pretrain_arguments("", ["--profile", "11"]), None)


def test_a_plan_rejects_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICKSTART, "--max_steps", "4", "--output_dir", str(tmp_path / "run"), "--dry_run"]
    print_plan(parse_pretrain_arguments("", [*words, "--profile", "4"]))
    assert "it fits" in capsys.readouterr().out
    with pytest.raises(UserError, match="--profile 100: the run ends after step 4"):
        print_plan(parse_pretrain_arguments("", [*words, "--profile", "100"]))


def test_a_plan_says_that_a_step_larger_than_an_epoch_will_not_start(
    sample_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICKSTART, "--output_dir", str(tmp_path / "run"), "--dataset", str(sample_store)]
    words = [word for word in words if word not in ("nowhere", "--block_length", "64")]
    words = [*words[:2], *words[3:], "--warmup_steps", "2", "--global_batch_tokens", "4194304"]
    parsed = parse_pretrain_arguments("", words)
    message = r"--global_batch_tokens 4194304: a step of 65,536 blocks is more than the [\d,]+ of an epoch"
    with pytest.raises(UserError, match=message):
        check_inputs(parsed, load_mixture([str(sample_store)], revision=None))
    print_plan(parsed)  # no error: the plan is of another machine, maybe with other blocks
    *before, verdict, reason = capsys.readouterr().out.rstrip().splitlines()
    assert not any("more than" in line for line in before), "said once"
    assert verdict == "it fits, but will not start on these blocks:"
    assert re.match(message, reason)


def test_tasks_of_random_ids_are_rejected(sample_store: Path, tmp_path: Path) -> None:
    """They have no text, so that no other --block_length would help."""
    (tmp_path / "tasks.jsonl").write_text('{"context": "The sky is", "completion": " blue"}\n')
    words = ["--model", "quickstart", "--dataset", "synthetic", "--global_batch_tokens", "512", "--output_dir"]
    words += [str(tmp_path / "run"), "--eval_tasks", str(tmp_path / "tasks.jsonl"), "--warmup_steps", "2"]
    with pytest.raises(UserError, match="--eval_tasks --dataset synthetic: random ids have no text") as caught:
        check_inputs(parse_pretrain_arguments("", words), load_mixture([str(sample_store)], revision=None))
    assert "block_length" not in str(caught.value)
