"""What a process of a trial measures: bytes that weights, gradients and optimizer take, and the most at once."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pretraining.runs.history import read_records
from pretraining.training.distributed.process_group import has_gpu
from pretraining.training.metrics.hardware_metrics import peak_resident_bytes
from pretraining.training.trainer.trainer import PretrainingTrainer

TRIAL_VARIABLE = "PRETRAINING_TRIAL"  # the folder of the trial that this process belongs to
WARM_UP_STEPS = 2  # which allocate memory and fill caches


def result_path(folder: Path, rank: int) -> Path:
    """Where a rank's result stands."""
    return folder / f"result-{rank}.json"


def is_trial() -> bool:
    """Whether this process only tries a run."""
    return TRIAL_VARIABLE in os.environ


def write_result(trainer: PretrainingTrainer) -> None:
    """After the steps of a trial."""
    rank = trainer.args.process_index
    found: dict[str, Any] = {
        "states": allocated_states(trainer.model_wrapped.optimizer, list(trainer.model.parameters())),
        "peak_bytes": _peak_bytes(),
        "tokens_per_second_per_gpu": _speed(trainer) if rank == 0 else None,
        "tokens_per_step": trainer.run_config.batch.tokens,
    }
    result_path(Path(os.environ[TRIAL_VARIABLE]), rank).write_text(json.dumps(found))


def allocated_states(zero: Any, parameters: list[torch.Tensor]) -> dict[str, int]:
    """Bytes of the storages that DeepSpeed's ZeRO-3 optimizer holds between two steps, by the plan's names."""
    weights = _storages(parameter.ds_tensor for parameter in parameters)
    master = _storages(zero.fp32_partitioned_groups_flat)
    whole = _storages(parameter.data for parameter in parameters if parameter.data.numel())
    copies = _storages(flat.grad for flat in zero.fp32_partitioned_groups_flat if flat.grad is not None)
    states = zero.optimizer.state.values()
    moments = _storages(value for state in states for value in state.values() if torch.is_tensor(value))
    return {
        "weights": sum(weights.values()),
        "whole_weights": sum(dict(whole.items() - weights.items()).values()),
        "gradients": sum(_storages([zero.grad_partitions_flat_buffer]).values()),
        "gradient_copies": sum(copies.values()),
        "master_weights": sum(dict(master.items() - weights.items()).values()),
        "moments": sum(moments.values()),
    }


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Storages by address, with their bytes."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def _peak_bytes() -> int:
    """Of the GPU's allocator; without one, of the process."""
    if has_gpu():
        return torch.cuda.max_memory_reserved()
    return peak_resident_bytes()


def _speed(trainer: PretrainingTrainer) -> float:
    """Mean over the steps after the first ones, each of which is a record."""
    records = [record for record in read_records(trainer.run_config.run_dir) if record["step"] > WARM_UP_STEPS]
    rates = [record["tokens_per_second_per_gpu"] for record in records if "loss" in record and "event" not in record]
    return len(rates) / sum(1 / rate for rate in rates) if rates else float("nan")
