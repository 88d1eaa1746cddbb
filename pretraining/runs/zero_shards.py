"""The fp32 master weights in the ZeRO shards of a checkpoint, from any number of ranks, put together one at a time.

The shards are pickles, which can run code. Each is searched, without running anything, for what it would call, and
refused if that is more than the tensors and the two kinds of objects that DeepSpeed saves.
"""

import contextlib
import io
from pathlib import Path
from typing import Protocol

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig

from pretraining.cli.errors import UserError
from pretraining.runs.checked_json import parse_json
from pretraining.runs.checkpoints import TOKENIZER_DIR_NAME, optimizer_shards
from pretraining.runs.record_file import record_of_checkpoint

EXPORTED_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by the precision of a run
KNOWN_OBJECTS = ("deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.runtime.fp16.loss_scaler.")


class ShardedWeight(Protocol):
    """A tensor whose pieces lie in mapped files."""

    shape: torch.Size

    def contiguous(self) -> torch.Tensor:
        """The pieces as one tensor, in memory."""


def open_shards(checkpoint: Path) -> tuple[LlamaConfig, dict[str, ShardedWeight]]:
    """The model's config and its weights by their names, those that are tied by one of theirs.

    Raises:
        UserError: when there are no shards, they cannot be read, or they are of another model.
    """
    config = config_of_checkpoint(checkpoint)
    weights = _lazy_weights(checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        raise UserError(f"{checkpoint}: its shards are not those of the model in its config")
    return config, weights


def _lazy_weights(checkpoint: Path) -> dict[str, ShardedWeight]:
    shards = optimizer_shards(checkpoint)
    if not shards:
        raise UserError(f"{checkpoint}: has no ZeRO shards (global_step*/*_optim_states.pt)")
    tag = shards[0].parent.name
    _check_pickles(shards[0].parent)
    unheard = io.StringIO()  # both print what they do, which takes no time yet: nothing is read but the outlines
    try:
        with contextlib.redirect_stdout(unheard), contextlib.redirect_stderr(unheard):
            # Only here, since it takes a second, which no other source of weights needs.
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=tag, lazy_mode=True)
    except Exception as error:  # a damaged pickle or archive raises whatever it leads to
        raise UserError(f"{checkpoint}: its shards cannot be read ({' '.join(str(error).split())})") from None
    first_names = {id(weight): name for name, weight in reversed(weights.items())}
    return {name: weight for name, weight in weights.items() if first_names[id(weight)] == name}


def _check_pickles(folder: Path) -> None:
    """Refuse shards that would do more than make tensors."""
    for path in sorted(folder.glob("*.pt")):
        try:
            names = get_unsafe_globals_in_checkpoint(str(path))
        except Exception as error:  # a damaged archive or pickle
            reason = " ".join(str(error).split())
            raise UserError(f"{folder.parent}: its shards cannot be read ({path.name}: {reason})") from None
        foreign = [name for name in names if not name.startswith(KNOWN_OBJECTS)]
        if foreign:
            raise UserError(f"{path}: would run {foreign[0]}, which no checkpoint of DeepSpeed does; it is not opened")


def config_of_checkpoint(checkpoint: Path) -> LlamaConfig:
    """The model's config, from the checkpoint or else from the record of its run; its dtype is that of the exports.

    Raises:
        UserError: when there is neither, or one that cannot be read.
    """
    own, needs = checkpoint / "config.json", ("identity.precision", "identity.model_config")
    try:
        fields = parse_json(own.read_bytes()) if own.is_file() else None
        record = record_of_checkpoint(checkpoint, needs=needs)
        if record is not None:  # the Trainer writes fp32 into the config.json of a checkpoint, whatever its weights are
            identity = record["identity"]
            dtype = EXPORTED_DTYPES[identity["precision"]]
            fields = {**(identity["model_config"] if fields is None else fields), "dtype": dtype}
        if fields is not None:
            return LlamaConfig.from_dict(fields)
    except UserError:
        raise
    except Exception as error:  # transformers and huggingface_hub have errors of their own for odd values
        reason = " ".join(str(error).split())
        raise UserError(f"{own}: not a model config ({reason}); restore it from a backup") from None
    raise UserError(f"{checkpoint}: has no config.json, and its run no run.json; copy the model's config there")


def tokenizer_of(folder: Path) -> Path:
    """The folder with the tokenizer of a model or checkpoint: itself, or that of its run.

    Raises:
        UserError: when neither has one.
    """
    places = (folder, folder.parent / TOKENIZER_DIR_NAME)
    place = next((place for place in places if (place / "tokenizer.json").is_file()), None)
    if place is None:
        raise UserError(f"{folder}: has no tokenizer.json; copy the tokenizer of its data set there")
    return place
