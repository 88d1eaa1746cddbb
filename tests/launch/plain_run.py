"""The same training by the plain Trainer in one process, without DeepSpeed: the reference that ZeRO-3 must equal.

python plain_run.py FIRST_WEIGHTS MODEL_CONFIG BLOCK_STORE OUTPUT_DIR BLOCKS_PER_STEP NUM_STEPS
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from pretraining.corpus.manifest import read_manifest
from pretraining.training.block_dataset import BlockDataset


def main() -> None:
    weights, config, store, output_dir, blocks_per_step, num_steps = sys.argv[1:]
    model = LlamaForCausalLM(LlamaConfig.from_dict(json.loads(config)))
    model.load_state_dict(torch.load(weights))
    arguments = TrainingArguments(
        output_dir=output_dir,
        use_cpu=True,
        per_device_train_batch_size=int(blocks_per_step),
        max_steps=int(num_steps),
        learning_rate=1e-2,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=2,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=1,
        save_strategy="no",
        seed=42,
    )
    store_path = Path(store)
    blocks = BlockDataset(store_path, read_manifest(store_path, flag=""), "train")
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks, data_collator=default_data_collator)
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    (Path(output_dir) / "records.json").write_text(json.dumps(records))


if __name__ == "__main__":
    main()
