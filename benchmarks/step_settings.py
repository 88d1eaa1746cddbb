#!/usr/bin/env python3
"""The time of a step under each ZeRO-3 setting on CPUs, and the cost of its hooks on the host.

    python3 -m benchmarks.step_settings

First the quickstart's step in two processes, under the project's settings and under others, in turns. Then one process
and 32 layers so small that nothing takes time but Python and dispatch: that is the host's share of a layer, which has
to be less than what a GPU takes for it. Last one process whose optimizer is in host memory, as with offload, where the
update waits for that memory (DeepSpeedCPUAdam is compiled for it). Results: docs/benchmarks/step_settings.md.
"""

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import LlamaConfig

from benchmarks.results import PROJECT_DIR, command_line, hardware, table, versions, write_section
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.planning.flops import num_parameters
from pretraining.system.launchers import DEEPSPEED
from pretraining.training.model.fields import load_presets

logger = logging.getLogger("pretraining.benchmarks")

PACKAGES = ("torch", "deepspeed", "transformers")
OURS = "as it is"
LOSS_TILES = 4  # of recipes/quickstart/pretrain.yaml
SMALL_MESSAGES = {"reduce_bucket_size": 36864, "stage3_prefetch_bucket_size": 33177}  # hidden size 192, squared
QUICKSTART: dict[str, dict[str, Any]] = {
    OURS: {},
    'the Trainer\'s "auto": messages of 36,864 numbers': {"zero": SMALL_MESSAGES},
    "and modules gathered one by one": {"zero": SMALL_MESSAGES, "by_layer": False},
    "modules gathered one by one": {"by_layer": False},
    "all weights kept whole (persistence threshold 1e7)": {"zero": {"stage3_param_persistence_threshold": 10**7}},
    "without overlap_comm": {"zero": {"overlap_comm": False}},
    "without contiguous_gradients": {"zero": {"contiguous_gradients": False}},
    "the loss of transformers, of all tokens at once": {"loss_tiles": None},
    "8 tiles of the loss": {"loss_tiles": 8},
    "fp32": {"precision": "fp32"},
    "--compile_layers": {"compiled": True},
    "ZeRO-1": {"zero": {"stage": 1}},
}
HOST: dict[str, dict[str, Any]] = {
    "ZeRO-3, layers gathered (as it is)": {},
    "ZeRO-3, modules gathered one by one": {"by_layer": False},
    "ZeRO-3, layers gathered, --activation_checkpointing": {"checkpointing": True},
    "ZeRO-3, layers gathered, --compile_layers": {"compiled": True},
    "ZeRO-1": {"zero": {"stage": 1}},
}
OFFLOADED: dict[str, dict[str, Any]] = {
    OURS: {"zero": {}},
    "sub groups of 1e7": {"zero": {"sub_group_size": 10**7}},
    "sub groups of 2e6": {"zero": {"sub_group_size": 2 * 10**6}},
    "DeepSpeedCPUAdam": {"zero": {}, "optimizer": "DeepSpeedCPUAdam"},
    "DeepSpeedCPUAdam, sub groups of 1e7": {"zero": {"sub_group_size": 10**7}, "optimizer": "DeepSpeedCPUAdam"},
    "AdamW of torch, not fused": {"zero": {}, "optimizer": "AdamW"},
}
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
ADAM_BYTES = 28  # a parameter: fp32 weight, gradient and two moments read, all but the gradient written
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 32, "num_attention_heads": 4}


@dataclass(frozen=True)
class SettingsArguments:
    """Flags of this comparison."""

    num_steps: int = flag(30, "steps of each setting that count")
    num_processes: int = flag(2, "processes of the quickstart's step")
    output: Path = flag(Path("docs/benchmarks/step_settings.md"), "page to write")


def main(argv: Sequence[str]) -> None:
    """Measure both, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", SettingsArguments)], argv)
    source = f"{hardware()}; {versions(PACKAGES)}.\n\n{command_line('step_settings')}\n\n"
    quickstart = {**load_presets()["quickstart"], "vocab_size": 8192}
    settings = {name: {"loss_tiles": LOSS_TILES, **setting} for name, setting in QUICKSTART.items()}
    found = run_settings(settings, quickstart, arguments, num_processes=arguments.num_processes, block=(4, 256))
    write_section(arguments.output, "A step of the quickstart", source + quickstart_table(found))
    found = run_settings(HOST, {**TINY, "vocab_size": 512}, arguments, num_processes=1, block=(1, 8))
    write_section(arguments.output, "The host's share of a layer", source + host_table(found))
    wide = {**WIDE, "vocab_size": 4096}
    found = run_settings(OFFLOADED, wide, arguments, num_processes=1, block=(1, 8), config="ds_config_offload.json")
    write_section(
        arguments.output, "An update in host memory", source + update_table(found, num_parameters(LlamaConfig(**wide)))
    )
    logger.info("result: %s", arguments.output)


def run_settings(
    settings: dict[str, dict[str, Any]],
    model: dict[str, Any],
    arguments: SettingsArguments,
    *,
    num_processes: int,
    block: tuple[int, int],
    config: str = "ds_config.json",
) -> dict[str, dict[str, Any]]:
    """Seconds (of shape [num_steps, 3]) and losses of each setting."""
    micro_batch, block_length = block
    task = {
        "model": model,
        "settings": list(settings.values()),
        "ds_config": json.loads((PROJECT_DIR / config).read_text()),
        "micro_batch": micro_batch,
        "block_length": block_length,
        "num_steps": arguments.num_steps,
    }
    with tempfile.TemporaryDirectory() as folder:
        result, task_path = Path(folder) / "result.json", Path(folder) / "task.json"
        task_path.write_text(json.dumps(task))
        launcher = [*DEEPSPEED, f"--num_gpus={num_processes}"]
        command = [*launcher, "--module", "benchmarks.step_settings_run", result, task_path]
        num_threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False, env=environment
        )
        if done.returncode:
            raise UserError(f"benchmarks.step_settings_run failed: {(done.stdout + done.stderr)[-2000:]}")
        found = json.loads(result.read_text())
    return dict(zip(settings, found, strict=True))


def quickstart_table(found: dict[str, dict[str, Any]]) -> str:
    """Milliseconds of each setting, and the ratio to ours in the same round."""
    ours = np.array(found[OURS]["seconds"]).sum(axis=1)
    rows = []
    for name, figures in found.items():
        seconds = np.array(figures["seconds"])
        low, middle, high = np.quantile(seconds.sum(axis=1) / ours, [0.25, 0.5, 0.75])
        parts = [f"{1000 * median(part):.0f}" for part in (seconds.sum(axis=1), *seconds.T)]
        rows.append([name, *parts, f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{figures['losses'][-1]:.4f}"])
    words = "Milliseconds, median; the ratio to the first row is that of steps beside each other, median and quartiles."
    return f"{table(['setting', 'step', 'forward', 'backward', 'update', 'ratio', 'last loss'], rows)}\n\n{words}"


def host_table(found: dict[str, dict[str, Any]]) -> str:
    """Milliseconds of a layer in forward and backward."""
    rows = []
    for name, figures in found.items():
        forward, backward, _ = 1000 * np.median(np.array(figures["seconds"]), axis=0) / TINY["num_hidden_layers"]
        rows.append([name, f"{forward:.2f}", f"{backward:.2f}"])
    words = (
        "Milliseconds per layer, median; embedding, head and loss are in them, a thirty-second each. An H200 at 720 "
        "TFLOP/s would take 2.4 forward and 4.8 backward for a layer of Llama-2-7B over 4,096 tokens (arithmetic: "
        "2 x 202 M weights x 4,096, and attention). Measured on one: 2.6 and 5.6 "
        "([performance log](performance-log.md), entry 18)."
    )
    return f"{table(['one process, 32 tiny layers', 'forward', 'backward'], rows)}\n\n{words}"


def update_table(found: dict[str, dict[str, Any]], parameters: int) -> str:
    """Milliseconds of an update, and the memory bandwidth."""
    ours, rows = np.array(found[OURS]["seconds"])[:, 2], []
    for name, figures in found.items():
        updates = np.array(figures["seconds"])[:, 2]
        low, middle, high = np.quantile(updates / ours, [0.25, 0.5, 0.75])
        rate = ADAM_BYTES * parameters / np.median(updates) / 1e9
        ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append([name, f"{1000 * np.median(updates):.0f}", f"{rate:.1f}", ratio, f"{figures['losses'][-1]:.4f}"])
    words = (
        f"Milliseconds of an update of {parameters:,} weights with ds_config_offload.json, one process, median; GB/s "
        f"counts {ADAM_BYTES} bytes per weight, which is what Adam itself reads and writes. The norm of the gradients, "
        "their cast and the copy of the weights are in the time, not in the bytes."
    )
    return f"{table(['setting', 'update', 'GB/s', 'ratio', 'last loss'], rows)}\n\n{words}"


if __name__ == "__main__":
    run_program(main)
