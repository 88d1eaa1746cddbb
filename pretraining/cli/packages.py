"""Optional packages and what compiles: what is missing is reported before anything is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pretraining.system.gpus import driver_gpu_names
from pretraining.system.torch_environment import compiler_problem

if TYPE_CHECKING:
    from pretraining.cli.arguments.pretrain import PretrainArguments

# The package of an attention implementation; transformers can also download it by the package `kernels`.
FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
# The Trainer's names, with the package that has to be installed where it is called otherwise.
SAME_NAMES = "tensorboard wandb mlflow trackio clearml codecarbon comet_ml dagshub dvclive kubeflow neptune swanlab"
TRACKERS = {name: name for name in SAME_NAMES.split()} | {"azure_ml": "azureml", "flyte": "flytekit"}


def tracker_problems(report_to: Sequence[str]) -> Iterator[str]:
    """Trackers of --report_to that are unknown or not installed; "all" means the installed ones."""
    for name in report_to:
        if name not in (*TRACKERS, "all"):
            yield f"--report_to {name}: is not one of {', '.join(TRACKERS)}, all, none"
        elif name in TRACKERS and not _is_installed(TRACKERS[name]):
            yield f"--report_to {name}: is not installed; pip install {TRACKERS[name]}, or remove it"


def package_problems(arguments: PretrainArguments) -> Iterator[str]:
    """Packages that the flags need and this environment lacks; none for --dry_run, which plans for any machine."""
    if arguments.plan.dry_run:
        return
    if arguments.optimization.optim == "adamw_8bit" and not _is_installed("bitsandbytes"):
        yield "--optim adamw_8bit: needs bitsandbytes; `pip install bitsandbytes`, or use --optim adamw_bf16"
    if arguments.trainer.get("use_liger_kernel") and not _is_installed("liger_kernel"):
        yield "--use_liger_kernel: needs liger-kernel; `pip install liger-kernel`, or remove the flag"
    if arguments.model.fp8 and not _is_installed("torchao"):
        yield "--fp8: needs torchao; `pip install -c requirements-extras.txt torchao`, or remove the flag"
    if arguments.model.compile_layers:
        on_gpu = not (arguments.trainer.get("use_cpu") or os.environ.get("DS_ACCELERATOR") == "cpu")
        problem = compiler_problem(on_gpu=on_gpu and bool(driver_gpu_names()))
        yield from [] if problem is None else [f"--compile_layers: {problem}, or remove the flag"]
    attention = arguments.model.attention_implementation
    package = FLASH_PACKAGES.get(attention)
    if package is not None and not _is_installed(package) and not _is_installed("kernels"):
        yield (
            f"--attention_implementation {attention}: {package} is not installed; install it, or `pip install "
            "kernels`, or use --attention_implementation sdpa"
        )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
