"""Load the model and the tokenizer of a `ModelSource`."""

import logging
import resource
import time
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from pretraining.errors import UserError, reading
from pretraining.generation.load_weights import load_weights
from pretraining.generation.source import ModelSource
from pretraining.runs.export.zero_shards import config_of_checkpoint

logger = logging.getLogger(__name__)


def load_model(source: ModelSource, dtype: str = "auto") -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model on the best devices there are, and its tokenizer; says time and memory.

    Raises:
        UserError: when anything of it cannot be read, it is not a Llama, or it does not fit.
    """
    began_at = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with reading(f"--model {source.location}: the model", remedy="copy or download it again"):
        # PreTrainedTokenizerFast takes tokenizer.json as it stands; AutoTokenizer would rebuild Llama's pipeline.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source.tokenizer_location)
        tokenizer("a")  # `tokenizers` finds some mistakes of a file only when it encodes
        check_canary(tokenizer, source.location)
        config = config_of_checkpoint(Path(source.location))
        model = load_weights(Path(source.location), config, only_shards=source.only_shards, dtype_name=dtype).eval()
    _say(source, model, time.monotonic() - began_at)
    return model, tokenizer


def gives_ids(tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int]) -> bool:
    """Whether these are the ids of a document's text, without control tokens."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids


def check_canary(tokenizer: PreTrainedTokenizerFast, location: str) -> None:
    """Refuse a tokenizer that gives other ids than the one that made the blocks of training.

    Models of other programs come without a canary, and are taken as they are.
    """
    canary = tokenizer.init_kwargs.get("canary")
    if canary is None:
        return
    if not gives_ids(tokenizer, canary["text"], canary["ids"]):
        raise UserError(
            f"--model {location}: its tokenizer gives other ids here than in training; copy the tokenizer of its data "
            "set there again, or install the versions of requirements.lock"
        )


def _say(source: ModelSource, model: LlamaForCausalLM, seconds: float) -> None:
    parts = [f"{model.num_parameters():,} parameters in {str(model.dtype).removeprefix('torch.')} on {model.device}"]
    parts.append(f"loaded in {seconds:.1f} s")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parts.append(
        f"{model.get_memory_footprint() / 1e6:,.0f} MB of weights, {peak_bytes / 1e6:,.0f} MB of memory at most"
    )
    logger.info("model: %s, %s", source.description or source.location, ", ".join(parts))
