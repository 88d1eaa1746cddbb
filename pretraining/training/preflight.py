"""Checks that cost nothing and save hours: does the model fit this machine, do blocks and tokenizer belong
together.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from pretraining.cli.errors import UserError
from pretraining.corpus.manifest import Manifest
from pretraining.corpus.shards import sha256_of
from pretraining.corpus.tokenization import load_document_tokenizer
from pretraining.machine.memory import ModelStateBytes

logger = logging.getLogger(__name__)

WORKS_ON_ANY_MACHINE = (
    "what works on this machine: make quickstart, or deepspeed --num_gpus=2 pretrain.py --recipe "
    "recipes/quickstart/pretrain.yaml"
)


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


def check_schedule(flags: Mapping[str, Any], *, num_steps: int) -> None:
    """Make the learning rate schedule once; say when its warm-up is longer than the run.

    Raises:
        UserError: when transformers refuses it, or it needs what a ZeRO-3 optimizer lacks.
    """
    kwargs, warmup_steps = flags["lr_scheduler_kwargs"], flags["warmup_steps"]
    place = f"--lr_scheduler_type {flags['lr_scheduler_type']} with --lr_scheduler_kwargs {kwargs}"
    try:
        options = json.loads(kwargs) if kwargs else {}
        if "min_lr" in options:
            raise ValueError("under ZeRO-3 give min_lr_rate, the share of --learning_rate, in place of min_lr")
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=flags["learning_rate"])
        first_steps = int(warmup_steps if warmup_steps >= 1 else warmup_steps * num_steps)
        get_scheduler(flags["lr_scheduler_type"], optimizer, first_steps, num_steps, scheduler_specific_kwargs=options)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from None
    if warmup_steps >= num_steps:
        logger.warning(
            "--warmup_steps %g: the run has %d steps, so the learning rate never reaches its peak; give less, such as "
            "--warmup_steps 0.01 for 1 %% of the run",
            warmup_steps,
            num_steps,
        )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
