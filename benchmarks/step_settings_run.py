"""Alternate steps of one model under many ZeRO-3 settings in the same processes; see benchmarks/step_settings.py.

deepspeed --num_gpus=N --module benchmarks.step_settings_run RESULT SETTINGS. Each setting has a separate engine with
the same initial weights, and all train on the same block, so that equal arithmetic gives equal losses.
"""

import copy
import itertools
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.cli.program import run_program
from pretraining.planning.layout import resolve_auto
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.distributed.process_group import init_process_group, shutdown_process_group
from pretraining.training.model.compile import compile_layers, set_zero_leaf_layers
from pretraining.training.model.tiling import tile_loss

WARM_UP_STEPS = 3
OPTIMIZERS = {
    "fused AdamW": partial(torch.optim.AdamW, fused=True),
    "AdamW": torch.optim.AdamW,
    "DeepSpeedCPUAdam": DeepSpeedCPUAdam,
}


def make_engine(model: LlamaForCausalLM, setting: dict[str, Any], ds_config: dict[str, Any], micro_batch: int) -> Any:
    """`setting`: what differs from the project's own in "zero_optimization", and how it computes."""
    config = copy.deepcopy(ds_config)
    config["zero_optimization"] |= setting.get("zero", {})
    config["zero_optimization"] = resolve_auto(config["zero_optimization"], model.config)
    precision = setting.get("precision", "bf16")
    config |= {"bf16": {"enabled": precision == "bf16"}, "fp16": {"enabled": False}, "gradient_clipping": 1.0}
    config |= {"data_types": {"grad_accum_dtype": "fp32"}, "zero_allow_untested_optimizer": True}
    config |= {"zero_force_ds_cpu_optimizer": False}
    config |= {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": micro_batch}
    del config["train_batch_size"]
    if setting.get("by_layer", True) and config["zero_optimization"]["stage"] == 3:
        set_zero_leaf_layers(model)
    if setting.get("loss_tiles") is not None:
        tile_loss(model, num_tiles=setting["loss_tiles"])
    if setting.get("checkpointing", False):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if setting.get("compiled", False):
        compile_layers(model)
    groups = [
        [weight for weight in model.parameters() if (weight.dim() > 1) == is_matrix] for is_matrix in (True, False)
    ]
    make = OPTIMIZERS[setting.get("optimizer", "fused AdamW")]
    optimizer = make([{"params": group} for group in groups], lr=1e-3)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def mean_loss(engine: Any, ids: torch.Tensor, *, in_tiles: bool) -> torch.Tensor:
    """The loss of transformers, or the same in tiles."""
    if not in_tiles:
        return engine(input_ids=ids, labels=ids).loss
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED_LABEL)
    return engine(input_ids=ids, labels=labels).loss / ids[:, 1:].numel()


def timed_step(engine: Any, ids: torch.Tensor, *, in_tiles: bool) -> tuple[list[float], float]:
    """Seconds of forward, backward and update, and the loss."""
    moments = [time.perf_counter()]
    loss = mean_loss(engine, ids, in_tiles=in_tiles)
    moments.append(time.perf_counter())
    engine.backward(loss)
    moments.append(time.perf_counter())
    engine.step()
    moments.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(moments)], loss.item()


def main(argv: Sequence[str]) -> None:
    """Alternate the settings, and write the seconds and losses of each."""
    result_path, task_path = [Path(word) for word in argv if not word.startswith("--")]
    task = json.loads(task_path.read_text())
    init_process_group(timeout_seconds=600)
    config = LlamaConfig(**task["model"], use_cache=False, attn_implementation="sdpa")
    engines = []
    for setting in task["settings"]:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        engines.append(make_engine(model, setting, task["ds_config"], task["micro_batch"]))
    ids = torch.randint(0, config.vocab_size, (task["micro_batch"], task["block_length"])).to(engines[0].device)
    found: list[dict[str, list[Any]]] = [{"seconds": [], "losses": []} for _ in engines]
    for number in range(WARM_UP_STEPS + task["num_steps"]):
        for place in range(len(engines)):
            turn = (place + number) % len(engines)  # none is always behind the same other
            torch.distributed.barrier()
            in_tiles = task["settings"][turn].get("loss_tiles") is not None
            seconds, loss = timed_step(engines[turn], ids, in_tiles=in_tiles)
            found[turn]["losses"].append(loss)
            if number >= WARM_UP_STEPS:
                found[turn]["seconds"].append(seconds)
    if torch.distributed.get_rank() == 0:
        result_path.write_text(json.dumps(found))
    shutdown_process_group()


if __name__ == "__main__":
    run_program(main)
    sys.exit()
