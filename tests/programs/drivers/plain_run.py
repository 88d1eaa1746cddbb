"""The same training by the plain Trainer in one process, without DeepSpeed: the reference that ZeRO-3 must equal.

python plain_run.py FIRST_WEIGHTS MODEL_CONFIG BLOCK_STORE OUTPUT_DIR BLOCKS_PER_STEP NUM_STEPS [muon]. The blocks are
read by `datasets`, the loss is the model's own, the optimizer and the constant learning rate are the Trainer's.
OUTPUT_DIR gets each step's loss and gradient norm, records.json, and the last weights, model.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import save_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from pretraining.training.data.order import BlockOrder


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon on the matrices of the layers, torch's AdamW on all else."""

    def __init__(self, model: LlamaForCausalLM, arguments: TrainingArguments) -> None:
        layers = dict(model.model.layers.named_parameters())
        matrices = [weight for weight in layers.values() if weight.ndim == 2]
        around = [model.model.embed_tokens.weight, model.lm_head.weight]
        norms = [weight for weight in model.parameters() if weight.ndim == 1]
        lr, decay = arguments.learning_rate, arguments.weight_decay
        groups = [{"params": around, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
        self.parts = [
            torch.optim.AdamW(groups, lr=lr, betas=(arguments.adam_beta1, arguments.adam_beta2)),
            torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        ]
        super().__init__(list(model.parameters()), {"lr": lr})

    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step()


class NormTrainer(Trainer):
    """The plain Trainer, with each step's gradient norm in fp64, as DeepSpeed sums it up, and those of its groups.

    torch's own adds up half a million squares in fp32, which is off by 5e-5 and by another amount on each processor.
    """

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*args, **options)
        norms = [parameter.grad.double().norm() for parameter in self.model.parameters()]
        self.norms = [*getattr(self, "norms", []), torch.stack(norms).norm().item()]
        self.by_group = [*getattr(self, "by_group", []), [_norm_of(modules) for modules in _groups(self.model)]]
        return loss


def _groups(model: LlamaForCausalLM) -> list[list[torch.nn.Module]]:
    """The embeddings, attention, MLPs, norms and head."""
    layers = list(model.model.layers)
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    around = ([layer.self_attn for layer in layers], [layer.mlp for layer in layers], [*norms, model.model.norm])
    return [[model.model.embed_tokens], *around, [model.lm_head]]


def _norm_of(modules: list[torch.nn.Module]) -> float:
    gradients = [parameter.grad.double().flatten() for module in modules for parameter in module.parameters()]
    return torch.cat(gradients).norm().item()


def main() -> None:
    weights, config, store, output_dir, blocks_per_step, num_steps, *optimizer = sys.argv[1:]
    model = LlamaForCausalLM(LlamaConfig.from_dict(json.loads(config)))
    model.load_state_dict(torch.load(weights))
    arguments = TrainingArguments(
        output_dir=output_dir,
        use_cpu=True,
        per_device_train_batch_size=int(blocks_per_step),
        max_steps=int(num_steps),
        learning_rate=1e-2 if optimizer else 1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
    )
    shards = sorted(str(path) for path in Path(store).glob("data/train-*.parquet"))
    stored = datasets.load_dataset("parquet", data_files=shards, split="train").with_format("numpy")
    order = BlockOrder((len(stored),), (1000,), seed=42)
    numbers = order.block_ids(np.arange(int(blocks_per_step) * int(num_steps)))
    blocks = [torch.from_numpy(stored[int(number)]["input_ids"].astype(np.int64)) for number in numbers]
    items = [{"input_ids": block, "labels": block} for block in blocks]
    optimizers = (MuonAndAdamW(model, arguments), None) if optimizer == ["muon"] else (None, None)
    trainer = NormTrainer(
        model=model, args=arguments, train_dataset=items, data_collator=default_data_collator, optimizers=optimizers
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    steps = zip(losses, trainer.norms, trainer.by_group, strict=True)
    records = [{"loss": loss, "grad_norm": norm, "by_group": by_group} for loss, norm, by_group in steps]
    (Path(output_dir) / "records.json").write_text(json.dumps(records))
    save_model(model, str(Path(output_dir) / "model.safetensors"))


if __name__ == "__main__":
    main()
