"""Load the model and tokenizer of a `ModelSource`: on devices and in a dtype that fit, each weight in memory once."""

import contextlib
import logging
import resource
import sys
import time
from pathlib import Path

import pynvml
import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from pretraining.errors import UserError, reading
from pretraining.generation.packed_linear import pack_linear_layer, pack_linear_layers
from pretraining.generation.static_shapes import length_multiple, round_up
from pretraining.runs.export.zero_shards import config_of_checkpoint, open_shards
from pretraining.runs.model_source import ModelSource
from pretraining.system.host import available_host_bytes, bf16_instruction

MAX_HOST_SHARE, MAX_GPU_SHARE = 0.9, 0.8  # of free memory for weights; the rest is for keys and values
MAX_CACHE_SHARE = 0.7  # of the memory that is free once the weights are loaded
MAX_FP32_SHARE = 0.5  # of free host memory; a larger model keeps its own dtype

logger = logging.getLogger(__name__)


def load_model(source: ModelSource, dtype: str = "auto") -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load the model onto the best devices available, and its tokenizer; log time and memory.

    Raises:
        UserError: if a file cannot be read, the model is not a Llama, or it does not fit.
    """
    started_at = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with reading(f"--model {source.location}: the model", remedy="copy or download it again"):
        # PreTrainedTokenizerFast uses tokenizer.json unchanged; AutoTokenizer would rebuild Llama's pipeline.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source.tokenizer_location)
        tokenizer("a")  # `tokenizers` finds some errors of a file only when it encodes
        check_canary(tokenizer, source.location)
        config = config_of_checkpoint(Path(source.location))
        model = load_weights(Path(source.location), config, only_shards=source.only_shards, dtype_name=dtype).eval()
    _log_loaded(source, model, time.monotonic() - started_at)
    return model, tokenizer


def encodes_to(tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int]) -> bool:
    """Whether the tokenizer encodes a document's text to these ids, without control tokens."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids


def check_canary(tokenizer: PreTrainedTokenizerFast, location: str) -> None:
    """Reject a tokenizer that gives other ids than in training; models of other programs have no canary to check.

    Raises:
        UserError: if it does.
    """
    canary = tokenizer.init_kwargs.get("canary")
    if canary is not None and not encodes_to(tokenizer, canary["text"], canary["ids"]):
        raise UserError(
            f"--model {location}: its tokenizer gives other ids here than in training; copy the tokenizer of its data "
            "set there again, or install the versions of requirements.lock"
        )


def load_weights(folder: Path, config: LlamaConfig, *, only_shards: bool, dtype_name: str) -> LlamaForCausalLM:
    """Load the model in `folder` from safetensors or from ZeRO shards.

    Raises:
        UserError: if it does not fit, or the shards cannot be read.
    """
    # cuDNN's attention builds a plan for every new length, which takes longer than a token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    with init_empty_weights(include_buffers=False):
        empty = AutoModelForCausalLM.from_config(config)
    own_dtype = config.dtype or torch.float32
    dtype = _compute_dtype(dtype_name, own_dtype, empty.num_parameters())
    devices = _device_map(folder, empty, dtype)
    if only_shards:
        return _load_shards(folder, empty, (own_dtype, dtype), devices)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map=devices, use_safetensors=True, trust_remote_code=False
    )
    pack_linear_layers(model)
    return model


def _compute_dtype(name: str, own: torch.dtype, num_parameters: int) -> torch.dtype:
    """The dtype that --dtype names.

    On a CPU, fp32 makes a text the same in every batch, and without bf16 instructions bf16 is ten times slower.
    """
    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        return own
    fits_in_fp32 = 4 * num_parameters <= MAX_FP32_SHARE * available_host_bytes()
    return torch.float32 if fits_in_fp32 or bf16_instruction() is None else own


def _device_map(folder: Path, empty: LlamaForCausalLM, dtype: torch.dtype) -> dict[str, int | str]:
    """The device of each part of the model: one that holds all of it, or else several GPUs."""
    num_bytes = empty.num_parameters() * dtype.itemsize
    free = _free_gpu_bytes()
    if not free:
        free_bytes, place = available_host_bytes(), "this machine"
        devices: dict[str, int | str] = {"": "cpu"} if num_bytes <= MAX_HOST_SHARE * free_bytes else {}
    else:
        free_bytes, place = sum(free), f"{len(free)} GPUs" if len(free) > 1 else "the GPU"
        devices = _gpu_map(empty, dtype, [int(MAX_GPU_SHARE * count) for count in free])
    if not devices:
        smaller = "--dtype bfloat16, or a" if dtype == torch.float32 else "a"
        raise UserError(
            f"--model {folder}: its weights take {num_bytes / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, and "
            f"{place} has {free_bytes / 1e9:.1f} GB free; use {smaller} machine with more memory"
        )
    return devices


def _free_gpu_bytes() -> list[int]:
    """Free memory of each GPU.

    Of several, the driver is asked: `mem_get_info` creates a context on each GPU, which takes half a gigabyte there.
    """
    gpus = range(torch.cuda.device_count())
    if len(gpus) > 1:
        # Containers may hide the library of the driver.
        with contextlib.suppress(RuntimeError, ImportError, pynvml.NVMLError):
            used = [torch.cuda.device_memory_used(gpu) for gpu in gpus]
            return [torch.cuda.get_device_properties(gpu).total_memory - used[gpu] for gpu in gpus]
    return [torch.cuda.mem_get_info(gpu)[0] for gpu in gpus]


def _gpu_map(empty: LlamaForCausalLM, dtype: torch.dtype, max_bytes: list[int]) -> dict[str, int | str]:
    """The GPU of each part of the model, given the memory of each GPU; empty if it does not fit."""
    largest = max(range(len(max_bytes)), key=max_bytes.__getitem__)
    if empty.num_parameters() * dtype.itemsize <= max_bytes[largest]:
        return {"": largest}
    parts = infer_auto_device_map(
        empty, dict(enumerate(max_bytes)), no_split_module_classes=["LlamaDecoderLayer"], dtype=dtype
    )
    return {} if {"cpu", "disk"} & set(parts.values()) else parts


def _load_shards(
    checkpoint: Path, model: LlamaForCausalLM, dtypes: tuple[torch.dtype, torch.dtype], devices: dict[str, int | str]
) -> LlamaForCausalLM:
    """Load the fp32 weights of any number of ranks into an empty model, one at a time.

    They are rounded to the first dtype, as in an export, then cast to the second: both give the same model.
    """
    logger.info("loading the weights from the ZeRO shards in %s", checkpoint)
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed would log, among the completions
        _, weights = open_shards(checkpoint)
    for name in list(weights):
        part = max((part for part in devices if name.startswith(part)), key=len)
        weight = weights.pop(name).contiguous().to(dtypes[0]).to(devices[part], dtypes[1])
        model.load_state_dict({name: weight}, strict=False, assign=True)
        del weight
        pack_linear_layer(model, name.rpartition(".")[0])
    model.tie_weights()
    return dispatch_model(model, devices) if len(devices) > 1 else model


def max_rows(model: LlamaForCausalLM, num_positions: int) -> int:
    """Number of sequences of this length whose keys and values fit into memory.

    Raises:
        UserError: if not even one fits.
    """
    config = model.config
    head_dim = model.model.layers[0].self_attn.head_dim
    num_padded = round_up(num_positions, length_multiple(model.device))
    row_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * num_padded
    row_bytes *= 4 if model.device.type == "cpu" else model.dtype.itemsize
    devices = {layer.self_attn.q_proj.weight.device for layer in model.model.layers}
    free = [available_host_bytes() if one.type == "cpu" else torch.cuda.mem_get_info(one)[0] for one in devices]
    num_rows = int(MAX_CACHE_SHARE * min(free) * len(devices)) // row_bytes
    if num_rows < 1:
        raise UserError(
            f"--max_new_tokens: keys and values of one text of {num_positions:,} tokens take {row_bytes / 1e9:.1f} GB, "
            f"and {min(free) / 1e9:.1f} GB are free; use fewer"
        )
    return num_rows


def _log_loaded(source: ModelSource, model: LlamaForCausalLM, seconds: float) -> None:
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    logger.info(
        "model: %s, %s parameters in %s on %s, loaded in %.1f s, %s MB of weights, %s MB peak memory",
        source.description or source.location,
        f"{model.num_parameters():,}",
        str(model.dtype).removeprefix("torch."),
        model.device,
        seconds,
        f"{model.get_memory_footprint() / 1e6:,.0f}",
        f"{peak_bytes / 1e6:,.0f}",
    )
