"""Where the weights for sampling come from: a run folder, an exported model, a checkpoint, bare ZeRO shards, or the
Hub.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from pretraining.cli.errors import UserError
from pretraining.runs.checkpoints import (
    MODEL_DIR_NAME,
    is_run_folder,
    newest_run,
    optimizer_shards,
    whole_checkpoints,
)
from pretraining.runs.zero_shards import open_shards, tokenizer_of

logger = logging.getLogger(__name__)

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class ModelSource:
    """A folder or Hub id to load from, and whether its weights must first be put together from ZeRO shards."""

    location: str
    tokenizer_location: str
    only_shards: bool = False


def find_model(name: str | None) -> ModelSource:
    """What `--model` means; None is the newest run in runs/.

    Raises:
        UserError: when there is no model there.
    """
    if name is None:
        run_dir = newest_run(RUNS_DIR)
        if run_dir is None:
            raise UserError("--model: there is no run in runs/ yet; train one with pretrain.py, or name a model")
        return _in_run_folder(run_dir)
    folder = Path(name)
    if not folder.is_dir():
        return ModelSource(name, name)
    if is_run_folder(folder):
        return _in_run_folder(folder)
    return _in_folder(folder)


def _in_run_folder(run_dir: Path) -> ModelSource:
    """The exported model of a run, or its newest complete checkpoint when it has not finished."""
    exported = run_dir / MODEL_DIR_NAME
    if _has_weights(exported):
        return _in_folder(exported)
    checkpoints = whole_checkpoints(run_dir)
    if not checkpoints:
        raise UserError(f"--model {run_dir}: the run has neither an exported model nor a complete checkpoint yet")
    return _in_folder(checkpoints[-1])


def _in_folder(folder: Path) -> ModelSource:
    tokenizer = tokenizer_of(folder)
    if _has_weights(folder):
        return ModelSource(str(folder), str(tokenizer))
    if optimizer_shards(folder):
        return ModelSource(str(folder), str(tokenizer), only_shards=True)
    raise UserError(f"--model {folder}: is no run, exported model or checkpoint (no *.safetensors, no ZeRO shards)")


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def load_model(source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model on the best device there is, in its own precision, and its tokenizer.

    Exported models and the Hub's are read from safetensors and JSON only. ZeRO shards are pickles, which can run code:
    load those of your own runs.

    Raises:
        UserError: when anything of it cannot be read.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # PreTrainedTokenizerFast takes tokenizer.json as it stands; AutoTokenizer would rebuild Llama's pipeline.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source.tokenizer_location)
        model = _from_shards(Path(source.location)) if source.only_shards else _from_weights(source.location, device)
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own for a file that it cannot read
        reason = " ".join(str(error).split())
        raise UserError(f"--model {source.location}: cannot be loaded ({reason})") from None
    check_canary(tokenizer, source.location)
    if model.config.model_type != "llama":
        raise UserError(
            f"--model {source.location}: is a {model.config.model_type} model; this suite samples from Llamas"
        )
    return model.to(device).eval(), tokenizer


def check_canary(tokenizer: PreTrainedTokenizerFast, location: str) -> None:
    """Refuse a tokenizer that gives other ids than the one that made the blocks of training.

    Models of other programs come without a canary, and are taken as they are.
    """
    canary = tokenizer.init_kwargs.get("canary")
    if canary is None:
        return
    ids = tokenizer(canary["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if ids != canary["ids"]:
        raise UserError(
            f"--model {location}: its tokenizer gives other ids here than in training; copy the tokenizer of its data "
            "set there again, or install the versions of requirements.lock"
        )


def _from_weights(location: str, device: str) -> PreTrainedModel:
    # A CPU without bf16 instructions computes bf16 ten times slower than fp32.
    dtype = "auto" if device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return AutoModelForCausalLM.from_pretrained(location, dtype=dtype, use_safetensors=True)


def _from_shards(checkpoint: Path) -> PreTrainedModel:
    """Put the fp32 master weights together from the shards of any number of ranks."""
    logger.info("putting the weights together from the ZeRO shards in %s", checkpoint)
    config, weights = open_shards(checkpoint)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight.contiguous())
    return model
