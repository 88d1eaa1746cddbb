#!/usr/bin/env python3
"""Peak host memory of each process while it loads a parent model, as --weights does and as transformers does.

    torchrun --nproc_per_node=2 -m benchmarks.weights_memory MODEL
    torchrun --nproc_per_node=2 -m benchmarks.weights_memory MODEL --by_transformers true
    torchrun --nproc_per_node=2 -m benchmarks.weights_memory MODEL --stage 1

The processes divide the model by ZeRO-3, or hold all of it below stage 3, in fp32 on the CPU. Peaks are above what
the process had before: anonymous memory, which is its own, and with the pages of mapped files, which the kernel takes
back when it needs memory. A thread reads both every millisecond. Prints them in MB and as a share of the model.
"""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.training.model.parent import find_parent, weight_files

POLL_SECONDS = 0.001
FIELDS = {"anonymous": ("RssAnon",), "with mapped files": ("RssAnon", "RssFile", "RssShmem")}


@dataclass(frozen=True)
class MemoryArguments:
    """Flags of this benchmark."""

    model: str | None = flag(None, "folder of an exported model; comes first, without --model")
    stage: int = flag(3, "ZeRO stage: 3, or below it with the whole model on every process")
    by_transformers: bool = flag(False, "load it by AutoModelForCausalLM.from_pretrained instead")


def main(argv: Sequence[str]) -> None:
    """Load the model in a process group, and print the peaks of each process in turn."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Memory", MemoryArguments)], argv, first=["model"])
    parent = find_parent(arguments.model or "", flag="--model", needs_tokenizer=False)
    num_bytes = sum(path.stat().st_size for path in weight_files(Path(parent.folder)))

    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from pretraining.training.distributed.deepspeed_internals import disable_shm_op
    from pretraining.training.model.weights import ParentWeights, load_parent

    disable_shm_op()
    deepspeed.init_distributed("gloo", verbose=False)
    sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": dist.get_world_size()}
    kept = HfDeepSpeedConfig({**sizes, "zero_optimization": {"stage": arguments.stage}})
    config = LlamaConfig.from_pretrained(parent.folder)
    if arguments.by_transformers:
        load: Callable[[], object] = lambda: AutoModelForCausalLM.from_pretrained(parent.folder)  # noqa: E731
    else:
        kind = {"dtype": torch.float32, "device": torch.device("cpu")}
        load = lambda: load_parent(ParentWeights(parent, config, grows=False), "sdpa", **kind)  # noqa: E731
    peaks = peaks_of(load)
    for rank in range(dist.get_world_size()):
        dist.barrier()
        if rank == dist.get_rank():
            found = {name: f"{peak / 1e6:,.0f} MB, {peak / num_bytes:.0%}" for name, peak in peaks.items()}
            text = f"rank {rank} of {dist.get_world_size()}, a model of {num_bytes / 1e6:,.0f} MB: {json.dumps(found)}"
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
    del kept


def peaks_of(work: Callable[[], object]) -> dict[str, int]:
    """The peaks in bytes while `work` runs, above what there was before."""
    before, peaks, is_done = resident_bytes(), dict.fromkeys(FIELDS, 0), threading.Event()

    def watch() -> None:
        while not is_done.wait(POLL_SECONDS):
            for name, value in resident_bytes().items():
                peaks[name] = max(peaks[name], value - before[name])

    thread = threading.Thread(target=watch)
    thread.start()
    result = work()
    is_done.set()
    thread.join()
    del result
    return peaks


def resident_bytes() -> dict[str, int]:
    """The memory of this process now, in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    sizes = {field: int(lines[field].split()[0]) << 10 for fields in FIELDS.values() for field in fields}
    return {name: sum(sizes[field] for field in fields) for name, fields in FIELDS.items()}


if __name__ == "__main__":
    run_program(main)
