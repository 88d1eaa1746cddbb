"""Check weights, rotary positions, tiles and the first loss at the start: errors show now, not after a week."""

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

MAX_SIGMAS = 6  # a correct standard deviation is further off once in 500 million tensors
ROUNDING = 0.005  # of the standard deviation, by bf16
MAX_TILE_DIFFERENCE = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3}  # relative, of the loss with and without tiles
CHECKED_TOKENS = 2048  # per process: untiled logits of 262,144 tokens of a vocabulary of 32,000 would take 84 GB
MAX_LOSS_DEVIATION = 0.5  # nats, between the first loss and that of fresh weights


def check_fresh_weights(model: PreTrainedModel) -> None:
    """Check fresh weights against the config: norms 1, biases 0, all others normal around 0.

    Raises:
        UserError: naming the first wrong tensor.
    """
    expected = model.config.initializer_range
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            values = parameter.detach().float()
            problem = _weight_problem(name, values, expected)
        if problem is not None:
            raise UserError(f"--model: the fresh weights of {name} {problem}; install requirements.lock")


def check_rotary_positions(model: PreTrainedModel) -> None:
    """Check that rotary frequencies are in fp32: in bf16, distant positions coincide.

    Raises:
        UserError: with the dtype that was found.
    """
    frequencies = model.model.rotary_emb.inv_freq
    if frequencies.dtype != torch.float32:
        raise UserError(
            f"--model: inv_freq of the rotary positions is {frequencies.dtype}, it must be torch.float32; install "
            "requirements.lock"
        )


def check_tiles(trainer: PretrainingTrainer) -> None:
    """Compare the loss with and without tiles on the beginning of the first block; called on every process.

    Raises:
        UserError: with the difference.
    """
    flags = trainer.run_config.arguments.model
    if flags.loss_tiles is None and flags.mlp_tiles is None:
        return
    num_tokens = CHECKED_TOKENS * trainer.run_config.batch.sequence_parallel_size
    collated = trainer.collate([{name: values[:num_tokens] for name, values in trainer.first_block().items()}])
    batch = {name: values.to(trainer.args.device) for name, values in collated.items()}
    # All tokens, also those that training masks: a prompt may be longer than the checked part.
    batch["labels"] = pad(batch["input_ids"][:, 1:], (0, 1), value=IGNORED_LABEL)
    with trainer.eager_evaluation() as engine:
        tiled = trainer.token_losses(engine, batch, in_tiles=True)
        with without_tiling(trainer.model):
            whole = trainer.token_losses(engine, batch, in_tiles=False)
    sums = torch.stack([tiled.loss_sum, whole.loss_sum]).double()
    torch.distributed.all_reduce(sums)  # with sequence parallelism each process has a part of the block
    difference = abs(sums[0] / sums[1] - 1).item()
    if not difference <= MAX_TILE_DIFFERENCE[trainer.run_config.precision]:
        raise UserError(
            f"--loss_tiles {flags.loss_tiles} --mlp_tiles {flags.mlp_tiles}: the loss of the first tokens "
            f"differs from the loss without tiles by {difference:.2g} of its value; remove these flags"
        )


def expected_first_loss(config: LlamaConfig) -> float | None:
    """The expected loss of fresh weights in nats; None for tied embeddings, where each token predicts itself at first.

    ln(vocabulary) plus half the variance of the logits, by the mean of a log-normal. The last norm gives each of
    `hidden_size` entries the mean square 1, so the variance is hidden_size * initializer_range^2.
    """
    if config.tie_word_embeddings:
        return None
    return math.log(config.vocab_size) + config.hidden_size * config.initializer_range**2 / 2


def check_first_loss(loss: float, config: LlamaConfig) -> None:
    """Check that the first loss is that of guessing.

    Raises:
        UserError: with the loss found and the expected one.
    """
    expected = expected_first_loss(config)
    if expected is None:
        return
    if not abs(loss - expected) <= MAX_LOSS_DEVIATION:
        raise UserError(
            f"--model: the loss of step 1 is {loss:.4f}, but fresh weights give {expected:.4f}; check the data and the "
            "initialization"
        )
    logger.info("first step: loss %.4f, fresh weights give %.4f", loss, expected)


def _weight_problem(name: str, values: torch.Tensor, expected: float) -> str | None:
    if "norm" in name:
        return None if bool((values == 1).all()) else "are not all 1"
    if name.endswith("bias"):
        return None if bool((values == 0).all()) else "are not all 0"
    return _deviation_problem(values, expected)


def _deviation_problem(values: torch.Tensor, expected: float) -> str | None:
    found = values.std().item()
    if found == expected:  # both 0, for initializer_range=0
        return None
    if abs(found / expected - 1) <= MAX_SIGMAS / math.sqrt(2 * values.numel()) + ROUNDING:
        return None
    return f"have a standard deviation of {found:.4g}, it must be {expected:.4g} (initializer_range)"
