"""A decoder layer as one thing: to ZeRO-3, which gathers it, and to the compiler, which makes its kernels.

ZeRO-3 hooks every module that has weights, twice in forward and twice in backward; a Llama layer has nine. Hooked as a
whole it costs the host 1.6 ms in forward in place of 3.3 (benchmarks/step_settings.md); an H200 computes a layer of
Llama-2-7B over 4,096 tokens in 2.4. Nothing within a layer is hooked then, so torch.compile takes it in one graph.
"""

import os
import tempfile
from pathlib import Path

import torch
from deepspeed.utils import set_z3_leaf_modules
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pretraining.system.private_dirs import private_dir

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def gather_by_layer(model: PreTrainedModel) -> None:
    """Have ZeRO-3 gather the weights of a layer at once; it must not have its engine yet."""
    set_z3_leaf_modules(model, [LlamaDecoderLayer])


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer; the first is compiled when it first runs, and the others take its kernels.

    What is compiled is `forward`, activation checkpointing included; around it stay the hooks of ZeRO-3.

    torch unpickles and runs what its cache holds. It has that in /tmp/torchinductor_USER, which anybody can create, and
    puts that name into the environment when it is imported.

    Raises:
        UserError: when the folder of the cache is not of this user alone.
    """
    shared = str(Path(tempfile.gettempdir(), "torchinductor_"))
    if os.environ.get(CACHE_VARIABLE, shared).startswith(shared):
        os.environ[CACHE_VARIABLE] = str(private_dir("torchinductor"))
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
