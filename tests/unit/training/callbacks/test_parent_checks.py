"""A parent is refused only where it is worse than guessing, and a rotary base needs clear evidence."""

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from pretraining.errors import UserError
from pretraining.training.callbacks import parent_checks
from pretraining.training.callbacks.parent_checks import check_first_loss_of_parent, check_parent, unigram_entropy

NUM_DRAWS = 200
VOCABULARY = 1000
BLOCK_LENGTH = 64


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the check of the first loss reads of a trainer: 256 blocks of even tokens out of 200."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 200, (256, BLOCK_LENGTH), generator=generator)
    monkeypatch.setattr(parent_checks, "run_on_main", lambda _: None)  # no card
    arguments = SimpleNamespace(
        parent=SimpleNamespace(place="--weights m", folder="m"),
        model=SimpleNamespace(grow_vocabulary=False, weights="m"),
        plan=SimpleNamespace(force=False, profile_plan=False),
    )
    return SimpleNamespace(
        run_config=SimpleNamespace(
            arguments=arguments,
            batch=SimpleNamespace(blocks=256, tokens=256 * BLOCK_LENGTH),
            config=SimpleNamespace(vocab_size=VOCABULARY),
            mixture=SimpleNamespace(origin=SimpleNamespace(chat_template=None)),
        ),
        data=SimpleNamespace(
            stream=SimpleNamespace(block_ids=lambda first, count: torch.arange(first, first + count)),
            train=[{"input_ids": row, "labels": row} for row in labels],
        ),
    )


def test_only_a_loss_above_guessing_is_refused(trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    entropy, guessing = math.log(200), math.log(VOCABULARY)
    check_first_loss_of_parent(trainer, entropy - 0.1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    check_first_loss_of_parent(trainer, entropy + 0.1)
    assert "new language or code" in caplog.text
    for loss in (guessing + 0.1, math.nan):
        with pytest.raises(UserError, match=r"--weights m: the loss of step 1 is .*, guessing has 6\.9078 .*--force"):
            check_first_loss_of_parent(trainer, loss)
    trainer.run_config.arguments.plan.force = True
    caplog.clear()
    check_first_loss_of_parent(trainer, guessing + 0.1)
    assert "another tokenizer, or damaged weights" in caplog.text


def test_a_batch_of_few_tokens_is_no_evidence(trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer.run_config.batch = SimpleNamespace(blocks=255, tokens=255 * BLOCK_LENGTH)
    check_first_loss_of_parent(trainer, 20.0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("weights", ["m", None])
def test_a_better_rotary_base_is_a_warning_with_the_remedy_of_each_program(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, weights: str | None
) -> None:
    """finetune.py has no --model_overrides. Blocks of 63 tokens have an entropy of 5.3 nats."""
    trainer.run_config.arguments.model.weights = weights
    own, other = (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": theta}) for theta in (1e4, 5e5))
    losses = torch.full((parent_checks.MAX_BASE_BLOCKS, BLOCK_LENGTH - 1), 4.0)
    gains = [0.2]

    def found(_trainer: Any, items: list[Any], configs: list[Any]) -> list[list[torch.Tensor]]:
        assert [len(item["input_ids"]) for item in items] == [BLOCK_LENGTH] * parent_checks.MAX_BASE_BLOCKS
        assert configs == [own, other]
        return [list(losses), list(losses - gains[-1])]

    monkeypatch.setattr(parent_checks, "_losses_by_files", found)
    parent_checks._warn_of_base(trainer, own, other, num_tokens=BLOCK_LENGTH)
    (line,) = caplog.messages
    assert "--weights m: with the rope_theta 10000 of its config the loss is 4.0000 (8 blocks), with 500000" in line
    assert "correct its config.json" in line
    assert ("--model_overrides rope_theta=500000" in line) == (weights is not None)
    gains.append(0.02)
    parent_checks._warn_of_base(trainer, own, other, num_tokens=BLOCK_LENGTH)
    assert len(caplog.messages) == 1


def test_trial_steps_read_no_file_of_the_parent(trainer: Any) -> None:
    trainer.run_config.arguments.plan.profile_plan = True
    check_parent(trainer)


def test_the_entropy_of_tokens_is_that_of_their_source_also_for_few() -> None:
    """A source of 200 tokens by Zipf's law: the correction leaves a fifth of the bias of 2,000 draws, at most."""
    shares = 1 / torch.arange(1, 201, dtype=torch.float64)
    shares /= shares.sum()
    exact = -(shares * shares.log()).sum().item()
    generator = torch.Generator().manual_seed(0)
    draws = [torch.multinomial(shares, 2000, replacement=True, generator=generator) for _ in range(NUM_DRAWS)]
    found = torch.tensor([unigram_entropy(draw) for draw in draws], dtype=torch.float64)
    plain = found - torch.tensor([(len(draw.unique()) - 1) / (2 * len(draw)) for draw in draws])
    assert abs(found.mean() - exact) < abs(plain.mean() - exact) / 5
    assert plain.mean() < exact
    masked = torch.cat([draws[0], torch.full((50,), -100)])
    assert unigram_entropy(masked) == unigram_entropy(draws[0])
    assert unigram_entropy(torch.zeros(10, dtype=torch.int64)) == 0
