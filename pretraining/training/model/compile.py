"""A decoder layer as one thing: to ZeRO-3, which gathers it, and to the compiler, which makes its kernels.

ZeRO-3 hooks every module that has weights, twice in forward and twice in backward; a Llama layer has nine. Hooked as a
whole it costs the host 1.6 ms in forward, not 3.3 (docs/benchmarks/step_settings.md); an H200 computes a layer of
Llama-2-7B over 4,096 tokens in 2.4. Nothing within a layer is hooked then, so torch.compile takes it in one graph.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed.utils import set_z3_leaf_modules
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pretraining.cli.packages import compiler_problem
from pretraining.errors import UserError
from pretraining.planning.layout import MachineSpec
from pretraining.system.cores import machine_cores
from pretraining.system.private_dirs import private_dir

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# A core trains the quickstart at 50 to 59 GFLOP/s (Zen 4, fp32 and bf16), so that a run takes longer than estimated.
FLOPS_PER_CORE_SECOND = 50e9
# Compiled layers save 5 to 18 % of a step and take up to a minute to compile: won back twice in 40 minutes at 5 %.
MIN_RUN_MINUTES = 40
ASKED = "as the flags say"
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
    """Compile layers as asked, else as the run that is resumed (`recorded`), else on a CPU where it saves time.

    It changes rounding, so all processes must decide alike: on several machines layers are not compiled unasked, as a
    compiler may be missing on one. Nor are they on GPUs, where the gain has not been measured. `flops` are those of
    the run, `num_cores` all of this machine.

    Raises:
        UserError: when the layers of the run that is resumed were compiled, and none can be here.
    """
    minutes = flops / (num_cores or machine_cores()) / FLOPS_PER_CORE_SECOND / 60
    problem = compiler_problem()
    reasons = {
        ASKED: asked is not None,
        "as the run was started": recorded is not None,
        "its gain on GPUs is not measured": machine.has_gpu,
        "the run is on several machines": machine.num_processes != machine.num_local_processes,
        TOO_SHORT: minutes < MIN_RUN_MINUTES,
        "not with tiles, eager attention or isolated documents": not is_possible,
        f"{problem}": problem is not None,
    }
    reason = next((name for name, holds in reasons.items() if holds), None)
    decided = asked if asked is not None else bool(recorded) and is_possible
    if decided and asked is None and problem is not None:
        raise UserError(f"--resume: the layers of this run are compiled, and here {problem}; or --compile_layers false")
    if reason is None:
        return Compilation(True, f"the run is long enough, about {minutes:.0f} min")
    return Compilation(decided, reason)


def set_zero_leaf_layers(model: PreTrainedModel) -> None:
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
