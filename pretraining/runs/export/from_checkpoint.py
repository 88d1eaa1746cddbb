"""Export a checkpoint: on any machine, in the memory of one output file, in any precision."""

import json
import logging
import shutil
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

from pretraining.cli.progress import Progress
from pretraining.errors import UserError, reading
from pretraining.runs.checksums import corruption_reason, incomplete_reason
from pretraining.runs.export.model_folder import EXPORTED_DTYPES, tokenizer_of
from pretraining.runs.export.publish import finalize, make_partial_dir, partial_folder, publish
from pretraining.runs.export.zero_shards import ShardedWeight, open_shards
from pretraining.runs.untrusted import MODEL_INDEX_NAME
from pretraining.system.formatting import format_bytes

logger = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, dtype) for name, dtype in EXPORTED_DTYPES.items()}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # the last is of finetune.py
MAX_FILE_BYTES = 5_000_000_000
OTHER_BYTES = 50_000_000  # for tokenizer and config


def export_checkpoint(checkpoint: Path, model_dir: Path, *, dtype: torch.dtype | None) -> torch.dtype:
    """Write the weights of a checkpoint as a standard Hugging Face model, and return their dtype.

    Without a `dtype` it is that of the run's own exported model, or of config.json where the run left no record.

    Raises:
        UserError: when the checkpoint is incomplete or damaged, the folder exists, or the disk is full.
    """
    problem = incomplete_reason(checkpoint) or corruption_reason(checkpoint)
    if problem is not None:
        raise UserError(f"{checkpoint}: checkpoint is incomplete or damaged: {problem}; use another one")
    if model_dir.exists():
        raise UserError(f"--output_dir {model_dir}: exists already; choose another folder")
    config, weights = open_shards(checkpoint)
    dtype = dtype or config.dtype or torch.float32
    tokenizer_dir = tokenizer_of(checkpoint)
    with reading(f"{tokenizer_dir}: its tokenizer", remedy="copy the tokenizer of its data set there"):
        PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)("a")
    partial = partial_folder(model_dir)
    logger.info("merging the ZeRO shards in %s", checkpoint)
    try:
        model_dir.parent.mkdir(parents=True, exist_ok=True)
        _check_space(model_dir, sum(weight.shape.numel() for weight in weights.values()) * dtype.itemsize)
        make_partial_dir(partial)
        write_weights(partial, weights, dtype=dtype)
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, partial / name)
        _write_config(partial, config, dtype=dtype)
        finalize(partial)
        publish(partial, model_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output_dir {model_dir}: cannot be written ({reason})") from None
    return dtype


def write_weights(folder: Path, weights: dict[str, ShardedWeight], *, dtype: torch.dtype) -> None:
    """Write safetensors files of at most 5 GB, with one at a time in memory."""
    empty = {name: torch.empty(weight.shape, dtype=dtype, device="meta") for name, weight in weights.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=MAX_FILE_BYTES)
    with Progress(sum(tensor.nbytes for tensor in empty.values())) as progress:
        for file_name, names in split.filename_to_tensors.items():
            tensors = {}
            for name in names:
                tensors[name] = weights[name].contiguous().to(dtype)
                progress.advance(tensors[name].nbytes, file_name)
            save_file(tensors, folder / file_name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / MODEL_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_config(folder: Path, config: LlamaConfig, *, dtype: torch.dtype) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config.dtype, config.architectures = dtype, ["LlamaForCausalLM"]
    for name in ("bos_token_id", "eos_token_id"):  # the record of a run does not have both
        token_id = getattr(tokenizer, name)
        setattr(config, name, getattr(config, name) if token_id is None else token_id)
    config.save_pretrained(folder)


def _check_space(model_dir: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(model_dir.parent).free
    if free < num_bytes + OTHER_BYTES:
        raise UserError(
            f"--output_dir {model_dir}: the model takes {format_bytes(num_bytes)}, the disk has {format_bytes(free)} "
            "left; free space or choose another disk"
        )
