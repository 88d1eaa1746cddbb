"""Check the start of a run from a parent model (--weights): it is that of its files, and one of these blocks.

Two things are known of a parent: its losses on the first block, which transformers computes from its files by another
path than training; and that it predicts better than guessing, and its own kind of text better than the frequencies of
the tokens. The first finds what this suite reads or computes wrongly; the second, and a rotary base with which the loss
is lower, find files that do not belong together.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig

from pretraining.errors import UserError
from pretraining.runs.export.from_checkpoint import DTYPES
from pretraining.runs.model_card import read_parent_card
from pretraining.training.callbacks.export_check import (
    ReferenceLosses,
    beginning,
    device_for,
    max_rms_nats,
    reference_losses,
)
from pretraining.training.data.dataset import IGNORED_LABEL, Item
from pretraining.training.distributed.collectives import run_on_main
from pretraining.training.model.fields import read_overrides
from pretraining.training.model.overrides import POSITION_FIELDS
from pretraining.training.model.reference import (
    MIN_BASE_GAIN,
    better_base,
    config_by_transformers,
    needed_bytes,
    parent_losses,
    with_other_bases,
)
from pretraining.training.model.weights import ParentWeights
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)

MAX_LOSS_DEVIATION = 0.5  # nats, above the held-out loss of the parent's card
MIN_CHECKED_TOKENS = 16_384  # of a batch: the entropy of fewer tokens is too low by much
MAX_BASE_BLOCKS = 8  # on which another rotary base must be better
MAX_ENTROPY_BLOCKS = 256  # a million tokens of 4,096 per block: reading them takes 25 ms


def check_parent(trainer: PretrainingTrainer) -> None:
    """Compare the first block's losses in training with those of the parent's files; called on every process.

    By the files alone, other rotary bases of published Llamas are tried as well, unless --model_overrides changes the
    positions, which costs loss at first and is meant to. Not in trial steps, whose memory it would disturb.

    Raises:
        UserError: when the losses differ.
    """
    if trainer.run_config.arguments.plan.profile_plan:
        return
    reference = reference_losses(trainer)
    logger.info(run_on_main(lambda: _compare_with_parent(trainer, reference)))


def _compare_with_parent(trainer: PretrainingTrainer, reference: ReferenceLosses) -> str:
    """A line for the log: the loss of the parent."""
    run = trainer.run_config
    model, parent = run.arguments.model, run.arguments.parent
    assert parent is not None, "called for a run that has one"
    overrides = read_overrides(model.model_overrides)
    own = config_by_transformers(Path(parent.folder), run.config.vocab_size)
    is_moved = bool(overrides.keys() & POSITION_FIELDS)
    trained = run.config if overrides else own
    configs = [trained] if is_moved else [trained, *with_other_bases(trained)]
    found = [losses[0] for losses in _losses_by_files(trainer, [reference.item], configs)]
    difference = (found[0] - reference.losses).square().mean().sqrt().item()
    if not difference <= max_rms_nats(trainer):
        raise UserError(
            f"{parent.place}: its loss on the first block is {found[0].mean():.4f}, in training it is "
            f"{reference.losses.mean():.4f} (rms difference per token {difference:.2g}); install requirements.lock, or "
            "remove flags of attention, tiles and compilation"
        )
    line = f"{parent.place}: {reference.description}, equal to that of its files"
    if is_moved:
        before = _losses_by_files(trainer, [reference.item], [own])[0][0]
        return f"{line}; {before.mean():.4f} without --model_overrides"
    best = min(range(len(found)), key=lambda index: found[index].mean().item())
    if found[best].mean() < found[0].mean() - MIN_BASE_GAIN:
        _warn_of_base(trainer, trained, configs[best], num_tokens=len(reference.item["input_ids"]))
    return line


def _losses_by_files(
    trainer: PretrainingTrainer, items: Sequence[Item], configs: Sequence[LlamaConfig]
) -> list[list[torch.Tensor]]:
    """`parent_losses` where there is memory beside the model in training."""
    run = trainer.run_config
    assert run.arguments.parent is not None, "called for a run that has one"
    dtype, num_tokens = DTYPES[run.precision], len(items[0]["input_ids"])
    weights = ParentWeights(run.arguments.parent, run.config, grows=run.arguments.model.grow_vocabulary)
    device = device_for(needed_bytes(run.config, num_tokens=num_tokens, dtype=dtype))
    found = parent_losses(weights, items, configs, dtype=dtype, device=device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # NCCL allocates outside torch's cache
    return found


def _warn_of_base(trainer: PretrainingTrainer, own: LlamaConfig, other: LlamaConfig, *, num_tokens: int) -> None:
    """Warn of a rotary base that is better on several blocks; the first of them suggested it."""
    run = trainer.run_config
    parent = run.arguments.parent
    assert parent is not None, "called for a run that has one"
    numbers = trainer.data.stream.block_ids(0, min(run.batch.blocks, MAX_BASE_BLOCKS)).tolist()
    items = [beginning(trainer.data.train[number], num_tokens) for number in dict.fromkeys(numbers)]
    with_own, with_other = _losses_by_files(trainer, items, [own, other])
    if not better_base(with_own, with_other, entropy=unigram_entropy(torch.cat([item["labels"] for item in items]))):
        return
    theta, other_theta = own.rope_parameters["rope_theta"], other.rope_parameters["rope_theta"]
    remedy = "correct its config.json"
    if run.arguments.model.weights is not None:  # finetune.py has no --model_overrides
        remedy += f", or add --model_overrides rope_theta={other_theta:g}"
    logger.warning(
        "%s: with the rope_theta %g of its config the loss is %.4f (%d blocks), with %g it is %.4f; if it was trained "
        "with that, stop the run and %s",
        *(parent.place, theta, torch.cat(with_own).mean(), len(items)),
        *(other_theta, torch.cat(with_other).mean(), remedy),
    )


def check_first_loss_of_parent(trainer: PretrainingTrainer, loss: float) -> None:
    """Check that the parent predicts the blocks of the first step better than guessing would.

    A model of such blocks has a loss below the entropy of their tokens, or below the loss that its model card records
    plus `MAX_LOSS_DEVIATION` if that is higher, as of a model that has hardly been trained. Neither limit holds for
    few tokens, for conversations, whose few answers have little entropy, and for a vocabulary that grew, whose new
    tokens the parent cannot predict.

    Raises:
        UserError: when guessing is better, unless --force is given.
    """
    run = trainer.run_config
    parent = run.arguments.parent
    assert parent is not None, "called for a run that has one"
    if run.mixture.origin.chat_template is not None or run.arguments.model.grow_vocabulary:
        return
    numbers = trainer.data.stream.block_ids(0, min(run.batch.blocks, MAX_ENTROPY_BLOCKS)).tolist()
    entropy = unigram_entropy(torch.cat([trainer.data.train[number]["labels"] for number in numbers]))
    recorded = run_on_main(lambda: read_parent_card(Path(parent.folder)).loss)
    of_parent = "" if recorded is None else f"; its own held-out loss was {recorded:.4f}"
    logger.info("first step: loss %.4f, the tokens alone have an entropy of %.4f%s", loss, entropy, of_parent)
    if run.batch.tokens < MIN_CHECKED_TOKENS:
        return
    limit = entropy if recorded is None else max(entropy, recorded + MAX_LOSS_DEVIATION)
    problem = first_loss_problem(loss, limit=limit, vocab_size=run.config.vocab_size)
    if problem is None:
        return
    if loss <= math.log(run.config.vocab_size) or run.arguments.plan.force:
        logger.warning("%s: %s", parent.place, problem)
        return
    raise UserError(f"{parent.place}: {problem}; preprocess with the tokenizer of the model, or pass --force")


def first_loss_problem(loss: float, *, limit: float, vocab_size: int) -> str | None:
    """What is wrong where the first loss of a parent is above `limit`, in nats."""
    if loss <= limit:
        return None
    guessing = math.log(vocab_size)
    if loss <= guessing:
        return (
            f"the loss of step 1 is {loss:.4f}, above the {limit:.4f} of a model that knows such text; expected for a "
            "new language or code, otherwise another tokenizer or damaged weights"
        )
    return (
        f"the loss of step 1 is {loss:.4f}, guessing has {guessing:.4f} (the logarithm of the vocabulary): another "
        "tokenizer, or damaged weights"
    )


def unigram_entropy(labels: torch.Tensor) -> float:
    """The entropy in nats of tokens without context, int64 of any shape, with Miller's correction for few tokens.

    A sample of n tokens, k of them different, has (k - 1) / 2n less than its source on average (Miller 1955, "Note on
    the bias of information estimates").
    """
    counts = torch.bincount(labels[labels != IGNORED_LABEL].flatten()).double()
    counts = counts[counts > 0]
    shares = counts / counts.sum()
    return float(-(shares * shares.log()).sum() + (len(counts) - 1) / (2 * counts.sum()))
