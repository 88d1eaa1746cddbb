"""Checks that cost nothing and save hours: does the model fit this machine, do blocks and tokenizer belong
together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.errors import UserError
from pretraining.cli.pretrain_arguments import OptimizationArguments
from pretraining.corpus.manifest import Manifest
from pretraining.corpus.shards import sha256_of
from pretraining.corpus.tokenization import load_document_tokenizer
from pretraining.machine.flops import num_parameters
from pretraining.machine.memory import ModelStateBytes, model_state_bytes
from pretraining.training.ds_config import offloads

ROOM_FOR_STATES = 0.85  # of a GPU; the rest is for activations, logits and buckets

WORKS_ON_ANY_MACHINE = (
    "what works on this machine: make quickstart, or deepspeed --num_gpus=2 pretrain.py --recipe "
    "recipes/quickstart/pretrain.yaml"
)


@dataclass(frozen=True)
class GradientType:
    """The type in which micro steps are added up, why it is that one, and what the model then needs."""

    name: str
    reason: str
    needed: ModelStateBytes


def check_memory(
    needed: ModelStateBytes, *, model: str, gpu_bytes: int | None, num_processes: int, available_host_bytes: int
) -> None:
    """Refuse a model whose weights, gradients and optimizer state alone are more than the machine has.

    `gpu_bytes` is the memory of the smallest GPU, None where there is none.

    Raises:
        UserError: with what it needs, what there is, and what to do.
    """
    what = f"--model {model}: weights, gradients and optimizer state need"
    if gpu_bytes is None:
        total = needed.gpu + needed.host
        if total > available_host_bytes:
            raise UserError(
                f"{what} {_gb(total)} of memory; this machine has no GPU and {_gb(available_host_bytes)} available; "
                f"{WORKS_ON_ANY_MACHINE}"
            )
        return
    per_gpu = needed.gpu // num_processes
    if per_gpu > gpu_bytes:
        raise UserError(
            f"{what} {_gb(per_gpu)} on each of {num_processes} GPUs, which have {_gb(gpu_bytes)}; use more GPUs, or "
            "keep them in host memory with --deepspeed ds_config_offload.json"
        )
    if needed.host > available_host_bytes:
        raise UserError(
            f"{what} {_gb(needed.host)} of host memory with this --deepspeed file, {_gb(available_host_bytes)} are "
            "available; use more GPUs with --deepspeed ds_config.json, or a smaller --model"
        )


def check_tokenizer(store: Path, manifest: Manifest) -> None:
    """Refuse a block store whose tokenizer/ is not the one that made its ids."""
    identity = manifest.origin.tokenizer
    path = store / "tokenizer" / "tokenizer.json"
    if not path.is_file() or sha256_of(path) != identity.sha256:
        raise UserError(f"--dataset {store}: {path} is missing or not the one that made the blocks; preprocess again")
    add_bos = manifest.origin.token_rules.bos_token_id is not None
    tokenizer = load_document_tokenizer(str(path.parent), add_bos=add_bos, flag="--dataset")
    if tokenizer.canary()["ids"] != identity.canary_ids:
        raise UserError(
            f"--dataset {store}: this version of `tokenizers` gives other ids for the canary text of the manifest; "
            "install the version of requirements.lock, or preprocess again"
        )


def choose_gradient_type(
    flags: OptimizationArguments,
    config: LlamaConfig,
    ds_config: dict[str, Any],
    *,
    precision: str,
    bytes_per_gpu: int | None,
    num_processes: int,
) -> GradientType:
    """In which type micro steps are added up: as asked for, otherwise fp32 unless only half of it fits the GPUs.

    Raises:
        UserError: for bf16 sums of fp16 gradients.
    """
    asked = flags.grad_accum_dtype
    if asked == "bf16" and precision == "fp16":
        raise UserError("--grad_accum_dtype bf16 --fp16: gradients of fp16 are not added up in bf16; give fp32")

    def needed(name: str) -> ModelStateBytes:
        return model_state_bytes(
            num_parameters(config),
            half_precision=precision != "fp32",
            optimizer=flags.optim,
            grad_accum_dtype=name,
            offload_optimizer=offloads(ds_config, "optimizer"),
            offload_parameters=offloads(ds_config, "param"),
        )

    if precision == "fp32" or asked != "auto":
        name = "fp32" if precision == "fp32" else asked
        return GradientType(name, "as the weights" if precision == "fp32" else "as asked for", needed(name))
    full, half = needed("fp32"), needed(precision)
    room = None if bytes_per_gpu is None else bytes_per_gpu * ROOM_FOR_STATES
    if room is None or full.gpu / num_processes <= room or half.gpu / num_processes > room:
        return GradientType("fp32", "sums in half precision lose small gradients", full)
    return GradientType(precision, f"fp32 would leave too little of the {_gb(bytes_per_gpu or 0)} of a GPU", half)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
