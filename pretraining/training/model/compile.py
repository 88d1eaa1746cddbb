"""Treat each decoder layer as one unit for ZeRO-3 gathering and torch.compile.

ZeRO-3 hooks every module that has weights, twice in forward and twice in backward; a Llama layer has nine. Hooked as a
whole, a layer costs the host 1.6 ms in forward instead of 3.3 (docs/benchmarks/step_settings.md); an H200 computes a
layer of Llama-2-7B over 4,096 tokens in 2.4 ms. Without hooks inside, torch.compile captures the layer in one graph.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed.utils import set_z3_leaf_modules
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pretraining.errors import UserError
from pretraining.planning.layout import MachineSpec
from pretraining.system.cores import machine_cores
from pretraining.system.files import private_dir
from pretraining.system.torch_environment import compiler_problem

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# A core trains the quickstart at 50 to 59 GFLOP/s (Zen 4, fp32 and bf16), so estimates are on the low side.
FLOPS_PER_CORE_SECOND = 50e9
# Compiled layers save 5 to 18 % of a step and take up to a minute to compile: 5 % of 40 minutes is twice that.
MIN_RUN_MINUTES = 40
ASKED = "set by --compile_layers"
TOO_SHORT = "the run is too short"


@dataclass(frozen=True)
class Compilation:
    """Whether layers are compiled, and why."""

    is_on: bool
    reason: str


def choose_compilation(
    asked: bool | None,
    *,
    recorded: bool | None,
    is_possible: bool,
    machine: MachineSpec,
    flops: float,
    num_cores: int | None = None,
) -> Compilation:
    """Compile layers as asked, else as the resumed run did (`recorded`), else on a CPU if it saves time.

    Compilation changes rounding, so all processes must decide alike: on several machines the default is off, as one may
    lack a compiler; on GPUs too, as the gain is measured for one model alone. `flops` are those of the run, `num_cores`
    all cores of this machine.

    Raises:
        UserError: when the layers of the resumed run were compiled and this machine cannot compile.
    """
    minutes = flops / (num_cores or machine_cores()) / FLOPS_PER_CORE_SECOND / 60
    problem = compiler_problem(on_gpu=machine.has_gpu)
    reasons = {
        ASKED: asked is not None,
        "as the run was started": recorded is not None,
        "on GPUs only if set": machine.has_gpu,
        "the run is on several machines": machine.num_processes != machine.num_local_processes,
        TOO_SHORT: minutes < MIN_RUN_MINUTES,
        "not with tiles, eager attention or --document_masking": not is_possible,
        f"{problem}": problem is not None,
    }
    reason = next((name for name, holds in reasons.items() if holds), None)
    decided = asked if asked is not None else bool(recorded) and is_possible
    if decided and asked is None and problem is not None:
        raise UserError(f"--resume: the layers of this run are compiled, but {problem}; or use --compile_layers false")
    if reason is None:
        return Compilation(True, f"the run is long enough, about {minutes:.0f} min")
    return Compilation(decided, reason)


def set_zero_leaf_layers(model: PreTrainedModel) -> None:
    """Have ZeRO-3 gather the weights of a layer at once; call it before the engine is made."""
    set_z3_leaf_modules(model, [LlamaDecoderLayer])


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer's `forward`, inside ZeRO-3's hooks; the first layer compiles, the others reuse its kernels.

    torch unpickles and runs the contents of its cache. Its default, /tmp/torchinductor_USER, can be created by any
    user, and torch puts that name into the environment when it is imported; so the cache moves to a private folder.

    Raises:
        UserError: when other users can open the cache folder.
    """
    shared = str(Path(tempfile.gettempdir(), "torchinductor_"))
    if os.environ.get(CACHE_VARIABLE, shared).startswith(shared):
        os.environ[CACHE_VARIABLE] = str(private_dir("torchinductor"))
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
