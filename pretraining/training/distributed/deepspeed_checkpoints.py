"""Uses of DeepSpeed's private parts to save and load checkpoints, each with its reason (deepspeed 0.19.8)."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine

COUNTS = ("global_steps", "global_samples", "skipped_steps")


def group_of_buffer(zero: Any) -> Mapping[int, int]:
    """The number of the optimizer's parameter group by number of the flat buffer: in stage 3 that of the sub-group.

    Below it each group has one (runtime/zero/stage3.py, stage_1_and_2.py, bf16_optimizer.py).
    """
    return getattr(zero, "sub_group_to_group_id", None) or {i: i for i in range(len(zero.optimizer.param_groups))}


def set_checkpoint_engine(engine: DeepSpeedEngine, checkpoint_engine: Any) -> None:
    """Replace what reads and writes the files of a checkpoint; no setting selects a class (runtime/engine.py).

    Nor are scripts copied into each checkpoint; `tools.checkpoints export` does what they do.
    """
    engine.checkpoint_engine = checkpoint_engine
    engine._copy_recovery_script = lambda _folder: None


def free_optimizer_state(engine: DeepSpeedEngine) -> None:
    """Free the moments before others are loaded; below stage 3 weights refer to theirs (utils/tensor_fragment.py)."""
    engine.optimizer.optimizer.state.clear()
    for parameter in engine.module.parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None and mapping.optim_fragment is not None:
            mapping.optim_fragment.clear()
    torch.cuda.empty_cache()  # does nothing without a GPU


def load_own_shard(engine: DeepSpeedEngine, checkpoint: Path, *, tag: str) -> None:
    """Have DeepSpeed load a checkpoint of as many processes, not what its file `latest` names.

    Below stage 3 it prints a line, sets gradient clipping to what it was at the save, and misses the weights, which a
    checkpoint of this suite has once, in model.safetensors: they are made from the fp32 weights.
    """
    is_stage_3 = engine.zero_optimization_partition_weights()
    with redirect_stdout(io.StringIO()):
        engine.load_checkpoint(str(checkpoint), tag=tag, load_module_strict=is_stage_3)
    if not is_stage_3:
        engine.optimizer.clip_grad = engine.gradient_clipping()
        engine.optimizer.update_lp_params()


def load_zero_state(engine: DeepSpeedEngine, rank: int, state: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Load the state of a rank's ZeRO optimizer that no file has (`load_state_dict` of the optimizers of each stage).

    The event methods of stage 3 partition the parameters that stay whole between steps, and gather them again.
    """
    if engine.zero_optimization_partition_weights():
        engine.optimizer.checkpoint_event_prologue()
        engine.optimizer.load_state_dict({rank: state})
        engine.optimizer.checkpoint_event_epilogue()
    else:
        with redirect_stdout(io.StringIO()):  # bf16_optimizer.py prints a line
            engine.optimizer.load_state_dict({rank: state}, load_from_fp32_weights=True)
        engine.optimizer.update_lp_params()
    for name in COUNTS:
        setattr(engine, name, counts[name])
