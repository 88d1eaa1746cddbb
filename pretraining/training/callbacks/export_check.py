"""Verify an exported model: read its weights back, and compare its losses with those of the model in training.

The beginning of a block runs through the model in training and through the folder as transformers loads it; attention
stays within documents in both where it does in training. The losses are compared per token: an error raises some and
lowers others, so a mean can hide it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from pretraining.training.data.batch import collate_targets, model_inputs
from pretraining.training.data.dataset import IGNORED_LABEL, Item
from pretraining.training.model.loss import token_losses
from pretraining.training.trainer.trainer import PretrainingTrainer

MAX_TOKENS = 1024  # of a block: a model of 7 B parameters takes seconds on a CPU, and eager attention little memory
MAX_RMS_NATS = {"fp32": 2e-4, "bf16": 0.1, "fp16": 0.1}  # root mean square of the differences per token
IGNORED_FIELDS = ("use_cache", "transformers_version", "_name_or_path")  # of a config
MEMORY_FACTOR = 1.5  # of the weights, on a GPU: activations, and the logits of a large vocabulary


@dataclass(frozen=True)
class ReferenceLosses:
    """The losses of the model in training for the beginning of the block `item`: fp32 [tokens], in nats.

    `is_trained` marks the tokens whose loss is trained, `block_length` is the length of the whole block.
    """

    item: Item
    losses: torch.Tensor
    is_trained: torch.Tensor
    block_length: int

    @property
    def description(self) -> str:
        """The mean loss of the trained tokens, and which tokens those are."""
        length = len(self.item["input_ids"])
        part = "" if length == self.block_length else f"the first {length:,} tokens of "
        loss = self.losses[self.is_trained].mean().item() if self.is_trained.any() else self.losses.mean().item()
        return f"loss {loss:.4f} on {part}the run's first block"


def reference_losses(trainer: PretrainingTrainer) -> ReferenceLosses:
    """The losses of the run's first block, also of tokens that training masks; called on every process."""
    share = trainer.run_config.batch.sequence_parallel_size
    block = trainer.first_block()
    length = min(MAX_TOKENS, len(block["input_ids"])) // share * share
    item = beginning(block, length)
    batch = {name: values.to(trainer.args.device) for name, values in trainer.collate([item]).items()}
    with trainer.eager_evaluation() as engine:
        tokens = trainer.token_losses(engine, batch, in_tiles=trainer.has_loss_tiles)
    parts = [torch.empty_like(tokens.losses) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tokens.losses.contiguous())
    losses = torch.cat(parts[:share], dim=1)[0].cpu()  # the first processes share the block, the others repeat it
    return ReferenceLosses(
        item,
        losses[_predicted(item["labels"])],
        is_trained=_predicted(block["labels"][:length])[: length - 1],
        block_length=len(block["input_ids"]),
    )


def beginning(block: Item, length: int) -> Item:
    """The first tokens of a block, each the target of the one before it."""
    item: Item = {name: block[name][:length] for name in ("input_ids", "position_ids") if name in block}
    return {**item, "labels": item["input_ids"]}


def _predicted(labels: torch.Tensor) -> torch.Tensor:
    """Whether each position of a block has a target, which is the token after it."""
    return collate_targets([{"labels": labels}])["labels"][0] != IGNORED_LABEL


def verify_export(
    trainer: PretrainingTrainer, folder: Path, weights: Mapping[str, torch.Tensor], reference: ReferenceLosses
) -> str | None:
    """How the model in a folder differs from the one in training, None if it does not; called on one process."""
    name = first_mismatched_tensor(folder, weights)
    if name is not None:
        return f"{name} has other bytes than were written"
    try:
        with _without_zero3(trainer.args.hf_deepspeed_config):
            losses = exported_losses(folder, reference.item)
    except Exception as error:  # each library has its own errors for files that it cannot read
        return f"it cannot be loaded ({' '.join(str(error).split())})"
    difference = (losses - reference.losses).square().mean().sqrt().item()
    limit = max_rms_nats(trainer)
    if not difference <= limit:
        return (
            f"its loss on a block is {losses.mean():.6f}, in training it is {reference.losses.mean():.6f} (rms "
            f"difference per token {difference:.2g}, more than {limit:g})"
        )
    names = changed_fields(folder, trainer.model.config)
    return f"its config.json differs in {', '.join(names)}" if names else None


def max_rms_nats(trainer: PretrainingTrainer) -> float:
    """How far the losses of the same weights may differ per token, as a root mean square, by rounding alone."""
    return MAX_RMS_NATS["bf16" if trainer.args.tf32 else trainer.run_config.precision]


def first_mismatched_tensor(folder: Path, weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor of a folder that differs in a bit from the gathered one."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if not _has_same_bits(opened.get_tensor(name), weights[name]):
                    return name
    return None


def _has_same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare bytes: as values, NaN differs from itself, and 0.0 equals -0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first_bytes, second_bytes = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(first_bytes, second_bytes)


def non_finite_weight(weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first weight that has a NaN or an Inf."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def changed_fields(folder: Path, config: PreTrainedConfig) -> list[str]:
    """The fields of a folder's config.json that differ from the model in training.

    Early in training, losses do not show a wrong rotary base yet.
    """
    opened = AutoConfig.from_pretrained(folder).to_dict()
    names = [
        name for name, value in config.to_dict().items() if name not in IGNORED_FIELDS and opened.get(name) != value
    ]
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))  # transformers 5 does not read it
    return names + ["rope_theta"] * (written["rope_theta"] != config.rope_parameters["rope_theta"])


@torch.no_grad()
def exported_losses(folder: Path, item: Item) -> torch.Tensor:
    """The losses of the predicted tokens of `item`, by the model in a folder as transformers loads it."""
    with torch.random.fork_rng():
        # Eager: sdpa and flash attention may be replaced in this process by sequence parallelism.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager").eval()
    model.config.use_cache = False  # with a cache, restarting positions would not separate documents
    model = model.to(device_for(model.get_memory_footprint()))
    batch = {name: values.to(model.device) for name, values in collate_targets([item]).items()}
    tokens = token_losses(model(**model_inputs(batch, in_one_row=False)), batch["labels"])
    losses = tokens.losses[tokens.is_predicted].cpu()
    del model, tokens
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # NCCL allocates outside torch's cache
    return losses


@contextmanager
def _without_zero3(hf_deepspeed_config: object) -> Iterator[None]:
    """Load models whole: transformers would partition them over all processes, and only one is loading."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(hf_deepspeed_config)


def device_for(num_bytes: int) -> torch.device:
    """The GPU if it has enough free memory, otherwise the CPU, where weights stay memory-mapped."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    return torch.device("cuda" if num_bytes * MEMORY_FACTOR < free_bytes else "cpu")
