"""Load a checkpoint of another number of processes or ZeRO stage, with other sub-groups, offload or precision.

DeepSpeed reads shards only with as many processes as wrote them. For others it has the universal checkpoint, which is
not used here: it takes another 12 bytes per parameter on disk (84 GB for Llama-2-7B), a conversion between the runs,
and an optimizer with the two moments of Adam. In 0.19.8 its loading is also wrong (zero/stage3.py,
`load_hp_checkpoint_state_from_checkpoint_dir_stage3`): every parameter group gets the hyperparameters of the first, so
norms get weight decay, and all sub-groups share one tensor as their `step`, which then counts each step many times.

But the layouts of ZeRO are simple (runs/export/zero_layout.py), and a checkpoint contains its own. So each process
copies the spans that are its own now from the old shards, mapped into memory, and assembles the state that DeepSpeed
would have read from a file of this process (rank_state.py). Nothing is written, and no process holds more than its
part: one of four processes 286 MB of 100 M parameters that two had saved as 1.2 GB.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from transformers import set_seed

from pretraining.cli.deepspeed_config import offloads, zero_stage
from pretraining.errors import UserError, reading
from pretraining.runs.export.zero_shards import ZeroShards, has_sharded_weights
from pretraining.runs.run_folder import optimizer_shards, read_trainer_state
from pretraining.runs.untrusted import load_pickle
from pretraining.training.checkpoint.rank_state import RankState, has_same_loss_scaling, indivisible_state
from pretraining.training.distributed.deepspeed_checkpoints import (
    free_optimizer_state,
    load_own_shard,
    load_zero_state,
    set_checkpoint_engine,
)
from pretraining.training.distributed.deepspeed_internals import parameter_shapes


class UntrustedReader(TorchCheckpointEngine):
    """Reads for DeepSpeed, which would unpickle whatever a shard names."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read into memory: a mapped optimizer state would keep the disk space of a removed checkpoint."""
        return load_pickle(Path(path), mmap=False)


def check_can_reshard(checkpoint: Path, ds_config: Mapping[str, Any], *, num_processes: int) -> None:
    """Reject, before anything is loaded, a checkpoint that only the processes and stage that saved it can resume.

    Raises:
        UserError: with the number of processes, or the stage.
    """
    has_other_stage = has_sharded_weights(checkpoint) != (zero_stage(ds_config) == 3)
    if len(optimizer_shards(checkpoint)) != num_processes or has_other_stage:
        with reading(f"--resume {checkpoint}: its shards", remedy="use another checkpoint"):
            check_divisible(
                ZeroShards(checkpoint),
                swaps=offloads(ds_config, "optimizer", to="nvme"),
                num_processes=num_processes,
            )


def check_divisible(shards: ZeroShards, *, swaps: bool, num_processes: int) -> None:
    """Reject a state that is not one number per weight, or that is or was to be swapped to a disk.

    Raises:
        UserError: with the number of processes that can resume, or the settings.
    """
    found = "on nvme" if swaps or any(shards.folder.glob("offloaded_tensors")) else indivisible_state(shards)
    if found is not None:
        remedy = f"among others; start with --num_gpus={shards.num_processes}"
        if num_processes == shards.num_processes:
            remedy = f"in another way; use precision, --optim, stage and sub_group_size of {shards.checkpoint}/run.json"
        raise UserError(
            f"--resume {shards.checkpoint}: was saved by {_describe(shards.num_processes)}, and its optimizer state "
            f"({found}) cannot be divided {remedy}"
        )


def describe_checkpoint(checkpoint: Path, *, num_processes: int, stage: int) -> str:
    """Name a checkpoint, and the number of processes and the stage that saved it if they are others."""
    saved_by, had_stage_3 = len(optimizer_shards(checkpoint)), has_sharded_weights(checkpoint)
    changes = [f"saved by {_describe(saved_by)}, now {num_processes}"] * (saved_by != num_processes)
    if had_stage_3 != (stage == 3):
        changes.append(f"saved with {'ZeRO-3' if had_stage_3 else 'ZeRO-1 or ZeRO-2'}, now ZeRO-{stage}")
    return f"{checkpoint}" + (f" ({'; '.join(changes)})" if changes else "")


def load_checkpoint(engine: DeepSpeedEngine, checkpoint: Path) -> None:
    """Load weights, optimizer, loss scale and counts.

    DeepSpeed loads where processes and layout are the same: in stage 3, and below it only what cannot be divided, since
    it takes over settings of the saved run there.

    The optimizer state of a run that rolls back is freed first: torch would hold it until the saved one is on the GPU,
    which for 7B on one GPU is 54 GB twice.

    Raises:
        UserError: when only as many processes as saved it can resume, or a shard is not one of DeepSpeed's.
    """
    with reading(f"--resume {checkpoint}: its shards", remedy="use another checkpoint"):
        shards = ZeroShards(checkpoint)
        is_own = _has_same_layout(shards, engine) and (shards.is_stage_3 or indivisible_state(shards) is not None)
    if not is_own:
        swaps = engine.zero_nvme_offload_optimizer()
        check_divisible(shards, swaps=swaps, num_processes=dist.get_world_size())
    free_optimizer_state(engine)
    if is_own:
        set_checkpoint_engine(engine, UntrustedReader())
        load_own_shard(engine, checkpoint, tag=shards.folder.name)
    else:
        load_zero_state(engine, dist.get_rank(), RankState(shards, engine).state_dict(), shards.engine_state)


def reseed_for_world_size(checkpoint: Path, *, seed: int, process: int) -> None:
    """Seed the random states of another number of processes, the same at each such resume.

    The saved ones are of no use: each process has other blocks now, and so draws other dropout masks. numpy derives
    independent seeds from seed, step and process.
    """
    step = read_trainer_state(checkpoint).global_step
    set_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))


def _has_same_layout(shards: ZeroShards, engine: DeepSpeedEngine) -> bool:
    """Whether each process would have saved its own file, with the same optimizer and in the same layout."""
    groups = engine.optimizer.optimizer.param_groups
    return (
        shards.num_processes == dist.get_world_size()
        and shards.is_stage_3 == engine.zero_optimization_partition_weights()
        and shards.shapes == parameter_shapes(engine)
        and shards.in_bf16 == engine.bfloat16_enabled()
        and has_same_loss_scaling(shards, engine.optimizer)
        and [group.keys() for group in shards.groups] == [group.keys() for group in groups]
    )


def _describe(num_processes: int) -> str:
    return f"{num_processes} process{'es' * (num_processes != 1)}"
