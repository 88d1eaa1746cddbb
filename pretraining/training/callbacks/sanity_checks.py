"""Does a fresh run begin as it must? Wrong weights, positions or losses show here, not after a week."""

import logging
import math

import deepspeed
import torch
from torch.nn.functional import pad
from transformers import LlamaConfig, PreTrainedModel

from pretraining.errors import UserError
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.model.tiling import without_tiling
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)

SIGMAS = 6  # a right spread is further off than so many standard errors once in 500 million tensors
ROUNDING = 0.005  # of the spread, by bf16
MOST_DIFFERENCE = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3}  # relative, of a loss in tiles and in whole blocks
CHECKED_TOKENS = 2048  # of a process: untiled logits of 262,144 tokens of a vocabulary of 32,000 would take 84 GB
MOST_NATS = 0.5  # between the first loss and what fresh weights give


def check_fresh_weights(model: PreTrainedModel) -> None:
    """Refuse weights that were not drawn as the config says: norms 1, biases 0, all others normal around 0.

    Raises:
        UserError: naming the first wrong tensor.
    """
    expected = model.config.initializer_range
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            values = parameter.detach().float()
            problem = _problem(name, values, expected)
        if problem is not None:
            raise UserError(f"--model: the fresh weights of {name} {problem}; install requirements.lock's versions")


def check_rotary_positions(model: PreTrainedModel) -> None:
    """Refuse rotary frequencies that lost their precision: in bf16 far positions fall together.

    Raises:
        UserError: with the type that was found.
    """
    frequencies = model.model.rotary_emb.inv_freq
    if frequencies.dtype != torch.float32:
        raise UserError(
            f"--model: inv_freq of the rotary positions is {frequencies.dtype}, it must be torch.float32; install "
            "requirements.lock's versions"
        )


def check_tiles(trainer: PretrainingTrainer) -> None:
    """Refuse tiles that give another loss than none, for the first block's beginning; called on every process.

    Raises:
        UserError: with the difference.
    """
    flags = trainer.plan.arguments.model
    if flags.loss_tiles is None and flags.mlp_tiles is None:
        return
    block = trainer.data.train[int(trainer.data.stream.block_ids(0, 1)[0])]
    batch = {
        name: values[:, :CHECKED_TOKENS].to(trainer.args.device) for name, values in trainer.collate([block]).items()
    }
    # Of every token, also where training masks it: a prompt may be longer than what is checked.
    batch["labels"] = pad(batch["input_ids"][:, 1:], (0, 1), value=IGNORED_LABEL)
    trainer.model_wrapped.eval()  # dropout would draw another mask each time; a training step turns it on again
    # Compiled layers would be compiled for this length, which is not seen again.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        tiled = trainer.token_losses(trainer.model_wrapped, batch, in_tiles=True)
        with without_tiling(trainer.model):
            whole = trainer.token_losses(trainer.model_wrapped, batch, in_tiles=False)
    sums = torch.stack([tiled.loss_sum, whole.loss_sum]).double()
    torch.distributed.all_reduce(sums)  # parts of the block, where processes share it
    difference = abs(sums[0] / sums[1] - 1).item()
    if not difference <= MOST_DIFFERENCE[trainer.plan.precision]:
        raise UserError(
            f"--loss_tiles {flags.loss_tiles} --mlp_tiles {flags.mlp_tiles}: the loss of the first tokens is off from "
            f"that without tiles by {difference:.2g} of it; leave them out"
        )


def expected_first_loss(config: LlamaConfig) -> float | None:
    """The loss of fresh weights; None for tied embeddings, where each token predicts itself at first.

    ln of the vocabulary, and half the variance of the logits: their mean exponential is that of a log-normal. The last
    norm gives each of `hidden_size` entries the mean square 1, so the variance is hidden_size * initializer_range^2.
    """
    if config.tie_word_embeddings:
        return None
    return math.log(config.vocab_size) + config.hidden_size * config.initializer_range**2 / 2


def check_first_loss(loss: float, config: LlamaConfig) -> None:
    """Refuse a run whose first loss is not that of guessing.

    Raises:
        UserError: with both.
    """
    expected = expected_first_loss(config)
    if expected is None:
        return
    if not abs(loss - expected) <= MOST_NATS:
        raise UserError(
            f"--model: the loss of step 1 is {loss:.4f}, fresh weights give {expected:.4f} (within {MOST_NATS}); the "
            "blocks or the weights are not what they should be"
        )
    logger.info("first step: loss %.4f, fresh weights give %.4f", loss, expected)


def _problem(name: str, values: torch.Tensor, expected: float) -> str | None:
    if "norm" in name:
        return None if bool((values == 1).all()) else "are not all 1"
    if name.endswith("bias"):
        return None if bool((values == 0).all()) else "are not all 0"
    return _spread_problem(values, expected)


def _spread_problem(values: torch.Tensor, expected: float) -> str | None:
    found = values.std().item()
    if found == expected:  # 0 of 0, which some ask for
        return None
    if abs(found / expected - 1) <= SIGMAS / math.sqrt(2 * values.numel()) + ROUNDING:
        return None
    return f"have a standard deviation of {found:.4g}, it must be {expected:.4g} (initializer_range)"
