"""The weights of a Llama as they are computed with: on devices and in a precision that fit, each in memory once."""

import logging
from pathlib import Path

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError
from pretraining.generation.packed_linear import pack_linear_layer, pack_linear_layers
from pretraining.runs.export.zero_shards import open_shards
from pretraining.system.host import available_host_bytes
from pretraining.system.processor import bf16_instruction

HOST_SHARE, GPU_SHARE = 0.9, 0.8  # of free memory that weights may take: the rest is for the cache
CACHE_SHARE = 0.7  # of what is free beside the weights
FP32_SHARE = 0.5  # of free host memory: a larger model stays in its own precision

logger = logging.getLogger(__name__)


def load_weights(folder: Path, config: LlamaConfig, *, only_shards: bool, dtype_name: str) -> LlamaForCausalLM:
    """The model in `folder`, from safetensors or from ZeRO shards.

    Raises:
        UserError: when it does not fit, or the shards cannot be read.
    """
    with init_empty_weights(include_buffers=False):
        empty = AutoModelForCausalLM.from_config(config)
    own_dtype = config.dtype or torch.float32
    dtype = _dtype(dtype_name, own_dtype, empty.num_parameters())
    devices = _devices(folder, empty, dtype)
    if only_shards:
        return _from_shards(folder, empty, (own_dtype, dtype), devices)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map=devices, use_safetensors=True, trust_remote_code=False
    )
    pack_linear_layers(model)
    return model


def _dtype(name: str, own: torch.dtype, num_parameters: int) -> torch.dtype:
    """The precision that --dtype names.

    On a CPU fp32 makes a text the same in every batch. Without bf16 instructions bf16 is ten times slower besides.
    """
    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        return own
    has_room = 4 * num_parameters <= FP32_SHARE * available_host_bytes()
    return torch.float32 if has_room or bf16_instruction() is None else own


def _devices(folder: Path, empty: LlamaForCausalLM, dtype: torch.dtype) -> dict[str, int | str]:
    """The device of each part of the model: one that holds all of it, or else as many GPUs as it takes."""
    num_bytes = empty.num_parameters() * dtype.itemsize
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    if not free:
        free_bytes, place = available_host_bytes(), "this machine"
        fits: dict[str, int | str] = {"": "cpu"} if num_bytes <= HOST_SHARE * free_bytes else {}
    else:
        free_bytes, place = sum(free), f"{len(free)} GPUs" if len(free) > 1 else "the GPU"
        fits = _on_gpus(empty, dtype, [int(GPU_SHARE * count) for count in free])
    if not fits:
        smaller = "--dtype bfloat16, or a" if dtype == torch.float32 else "a"
        raise UserError(
            f"--model {folder}: its weights take {num_bytes / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, and "
            f"{place} has {free_bytes / 1e9:.1f} GB free; give {smaller} machine with more memory"
        )
    return fits


def _on_gpus(empty: LlamaForCausalLM, dtype: torch.dtype, room: list[int]) -> dict[str, int | str]:
    roomiest = max(range(len(room)), key=room.__getitem__)
    if empty.num_parameters() * dtype.itemsize <= room[roomiest]:
        return {"": roomiest}
    parts = infer_auto_device_map(
        empty, dict(enumerate(room)), no_split_module_classes=["LlamaDecoderLayer"], dtype=dtype
    )
    return {} if {"cpu", "disk"} & set(parts.values()) else parts


def _from_shards(
    checkpoint: Path, model: LlamaForCausalLM, dtypes: tuple[torch.dtype, torch.dtype], devices: dict[str, int | str]
) -> LlamaForCausalLM:
    """Put the master weights of any number of ranks into an empty model, one at a time.

    They are rounded as an export rounds them, so that both are the same model.
    """
    logger.info("putting the weights together from the ZeRO shards in %s", checkpoint)
    _, weights = open_shards(checkpoint)
    for name in list(weights):
        part = max((part for part in devices if name.startswith(part)), key=len)
        weight = weights.pop(name).contiguous().to(dtypes[0]).to(devices[part], dtypes[1])
        model.load_state_dict({name: weight}, strict=False, assign=True)
        del weight
        pack_linear_layer(model, name.rpartition(".")[0])
    model.tie_weights()
    return dispatch_model(model, devices) if len(devices) > 1 else model


def rows_that_fit(model: LlamaForCausalLM, num_positions: int) -> int:
    """How many texts of this length can have their keys and values in memory at once.

    Raises:
        UserError: when not one can.
    """
    config = model.config
    head_dim = model.model.layers[0].self_attn.head_dim
    row_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * num_positions
    row_bytes *= 4 if model.device.type == "cpu" else model.dtype.itemsize
    places = {layer.self_attn.q_proj.weight.device for layer in model.model.layers}
    free = [available_host_bytes() if place.type == "cpu" else torch.cuda.mem_get_info(place)[0] for place in places]
    num_rows = int(CACHE_SHARE * min(free) * len(places)) // row_bytes
    if num_rows < 1:
        raise UserError(
            f"--max_new_tokens: keys and values of one text of {num_positions:,} tokens take {row_bytes / 1e9:.1f} GB, "
            f"and {min(free) / 1e9:.1f} GB are free; give fewer"
        )
    return num_rows
