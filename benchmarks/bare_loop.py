"""The least that trains the same model on the same blocks under ZeRO-3: DeepSpeed and a loop, no Trainer.

deepspeed --num_gpus=N -m benchmarks.bare_loop MODEL_CONFIG BLOCK_STORE DS_CONFIG RESULT MICRO_BATCH ACCUMULATION STEPS:
the blocks lie in memory, the loss is the model's own, nothing is logged. Writes the seconds of each step.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations import HfDeepSpeedConfig

from pretraining.training.processes import join_processes, leave_processes

import deepspeed  # isort: skip  # after the line that tells it about a machine without GPU


def main() -> None:
    """Train, and write down how long each step took."""
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    config_path, store, ds_config_path, result_path, micro_batch, accumulation, num_steps = words
    join_processes(timeout_seconds=600)
    ds_config = json.loads(Path(ds_config_path).read_text())
    engine = make_engine(LlamaConfig.from_dict(json.loads(Path(config_path).read_text())), ds_config)
    batches = itertools.cycle(read_batches(Path(store), int(micro_batch)))
    seconds = []
    for _ in range(int(num_steps)):
        began_at = time.perf_counter()
        for _ in range(int(accumulation)):
            ids = next(batches).to(engine.device)
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began_at)
    if torch.distributed.get_rank() == 0:
        Path(result_path).write_text(json.dumps(seconds))
    leave_processes()


def make_engine(config: LlamaConfig, ds_config: dict) -> deepspeed.DeepSpeedEngine:
    """Fresh weights, AdamW with weight decay on matrices alone, and ZeRO-3 around them."""
    alive = HfDeepSpeedConfig(ds_config)  # partitions every parameter as it is made, as long as it is alive
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    others = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    del alive
    return engine


def read_batches(store: Path, micro_batch: int) -> list[torch.Tensor]:
    """The training blocks of this process, int64 of shape [micro_batch, block_length] each."""
    tables = [pq.read_table(path, columns=["input_ids"]) for path in sorted(store.glob("data/train-*.parquet"))]
    rows = [np.array(table["input_ids"].to_pylist(), np.int64) for table in tables]
    own = torch.from_numpy(np.concatenate(rows)[torch.distributed.get_rank() :: torch.distributed.get_world_size()])
    return list(own[: len(own) // micro_batch * micro_batch].split(micro_batch))


if __name__ == "__main__":
    main()
